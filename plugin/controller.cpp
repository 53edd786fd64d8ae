#include "plugin/controller.h"

#include <fmt/format.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "plugin/controller_core.h"
#include "plugin/incarnation.h"
#include "plugin/planning.h"
#include "plugin/serial_worker.h"
#include "transport/base/log.h"
#include "transport/base/mailbox.h"

namespace weightcast {
namespace {

constexpr Milliseconds kTurn{20};
constexpr Milliseconds kPatience{1000};  // with a loop that is busy; then the last status is the answer

}  // namespace

struct Controller::State {
  explicit State(const Config& config)
      : config(config), core(config, new_incarnation(), Clock::now()), plans(kPlans), planning(config) {
    // The socket belongs to the loop's thread, its failure to the caller.
    std::mutex mutex;
    std::condition_variable opened;
    bool open = false;
    Status failure;
    const Secret secret = Secret::load(config.secret_file);
    thread = std::jthread([&, this](const std::stop_token& stop) {
      std::optional<ControlServer> server;
      {
        const std::scoped_lock lock(mutex);
        try {
          server.emplace(this->config.controller.address, secret);
          address = server->address();
          status_text = core.status_json(address);
        } catch (const Error& error) {
          failure = error.status();
        }
        open = true;
        opened.notify_one();
      }
      if (server) run(*server, stop);
    });
    std::unique_lock lock(mutex);
    opened.wait(lock, [&] { return open; });
    throw_if_failed(failure);
    log_info("controller of run '{}' on {}: waits for {} trainers and {} x {} servers", config.run, address,
             config.controller.trainers, config.controller.replicas, config.controller.servers_per_replica);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    thread.request_stop();
    if (thread.joinable()) thread.join();
    worker.close();
  }

  void run(ControlServer& server, const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (const auto frame = server.receive(Deadline::after(kTurn), plans.descriptor())) on_frame(server, *frame);
      while (auto plan = plans.take()) handle(server, core.on(std::move(*plan), Clock::now()));
      handle(server, core.on(Tick{}, Clock::now()));
      tell_status();
    }
  }
  // A run of thousands of ranks has a long status, and turns are many: it is made for those who ask.
  void tell_status() {
    std::uint64_t question = 0;
    {
      const std::scoped_lock lock(status_mutex);
      if (status_asked == status_answered) return;
      question = status_asked;
    }
    std::string status = core.status_json(address);
    {
      const std::scoped_lock lock(status_mutex);
      status_text = std::move(status);
      status_answered = question;
    }
    status_told.notify_all();
  }
  std::string ask_status() {
    std::unique_lock lock(status_mutex);
    const std::uint64_t question = ++status_asked;
    status_told.wait_for(lock, kPatience, [&] { return status_answered >= question; });
    return status_text;
  }
  void on_frame(ControlServer& server, const ControlFrame& frame) {
    try {
      const Message message = decode_message(frame.bytes);
      core.count_control_bytes(message, frame.bytes.size());
      handle(server, core.on(FrameArrived{frame.from, message}, Clock::now()));
    } catch (const Error& error) {
      log_warning("a member sent a message that cannot be read: {}", error.what());
      (void)server.send(frame.from, encode(Message(Refused{error.code(), error.what()})));
    }
  }
  void handle(ControlServer& server, std::vector<ControllerAction> actions) {
    for (ControllerAction& action : actions) {
      if (const auto* frame = std::get_if<SendFrame>(&action)) {
        const ControlBytes bytes = encode(frame->message);
        core.count_control_bytes(frame->message, bytes.size());
        if (!server.send(frame->connection, bytes)) log_debug("a member does not take messages");
      } else if (auto* request = std::get_if<MakePlan>(&action)) {
        worker.submit([this, order = std::move(*request)] {
          if (!plans.post(planning.answer_to(order))) log_error("the controller's queue of plans is full");
        });
      } else if (const auto* note = std::get_if<Note>(&action)) {
        log_at(note->warning ? LogLevel::warning : LogLevel::info, "controller: {}", note->text);
      }
    }
  }

  static constexpr std::size_t kPlans = 64;
  const Config config;
  ControllerCore core;  // of the loop's thread
  std::string address;
  Mailbox<PlanMade> plans;
  std::mutex status_mutex;
  std::condition_variable status_told;
  std::uint64_t status_asked = 0;  // questions; guarded by status_mutex, as all that follow
  std::uint64_t status_answered = 0;
  std::string status_text = "{}";  // the last answer
  Planning planning;               // of the worker's thread
  SerialWorker worker;
  std::jthread thread;
};

Controller::Controller(const Config& config) : state_(std::make_unique<State>(config)) {}

Controller::~Controller() = default;

const std::string& Controller::address() const noexcept { return state_->address; }

std::string Controller::status_json() const { return state_->ask_status(); }

}  // namespace weightcast

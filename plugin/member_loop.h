// The loop that drives a trainer's or a server's core: one thread that owns the control connection, feeds frames,
// ticks and posted events to the core, and hands its actions on. What callers wait for is the core's view, published
// after every event.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <variant>

#include "plugin/messages.h"
#include "plugin/trainer_core.h"
#include "schedule/config.h"
#include "transport/base/log.h"
#include "transport/base/mailbox.h"
#include "transport/control.h"

namespace weightcast {

// Event and Action are the core's variants; Event holds a Message, Action a SendMessage.
template <class Core, class Event, class Action, class View>
class MemberLoop {
 public:
  struct Hooks {
    std::function<void(Action&)> act;            // on the loop's thread; every action but SendMessage
    std::function<Event()> tick;                 // the event of each turn
    std::function<void(const View&)> published;  // on the loop's thread, after each event that callers may wait for
  };

  MemberLoop(const Config& config, const Secret& secret, Core core, Hooks hooks)
      : config_(config), secret_(secret), core_(std::move(core)), hooks_(std::move(hooks)), events_(kEvents) {
    view_ = core_.view();
  }
  MemberLoop(const MemberLoop&) = delete;
  MemberLoop& operator=(const MemberLoop&) = delete;
  ~MemberLoop() { stop(); }

  // Apart from the constructor, so that the hooks may use this object.
  void start() {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  // Says Leave, then ends; posting is still allowed, and without effect.
  void stop() {
    thread_.request_stop();
    if (thread_.joinable()) thread_.join();
  }

  // Thread-safe. An overfull box means that this process is stuck: said, and the event is lost.
  void post(Event event) {
    if (!events_.post(std::move(event))) log_error("the event queue of {} is full; an event was lost", config_.rank);
  }
  [[nodiscard]] View view() const {
    const std::scoped_lock lock(mutex_);
    return view_;
  }
  // Until enough(view) or the handle is dead; the view then, or nothing when the deadline passed first.
  template <class Enough>
  [[nodiscard]] std::optional<View> wait(Deadline deadline, Enough&& enough) const {
    std::unique_lock lock(mutex_);
    const bool done = changed_.wait_until(lock, deadline.end(), [&] { return !view_.fatal.ok() || enough(view_); });
    if (!done) return std::nullopt;
    return view_;
  }

 private:
  static constexpr std::size_t kEvents = 4096;
  static constexpr Milliseconds kTurn{20};

  void run(const std::stop_token& stop) {
    try {
      ControlClient client(config_.controller.address, secret_);
      const std::stop_callback wake(stop, [this] { post(hooks_.tick()); });
      handle(client, core_.start(Clock::now()));
      while (!stop.stop_requested()) turn(client);
      (void)client.send(encode(Message(Leave{})));
    } catch (const Error& error) {
      refuse(error.code(), error.what());
    } catch (const std::exception& error) {
      refuse(Code::internal, error.what());
    }
  }

  void turn(ControlClient& client) {
    if (const auto frame = client.receive(Deadline::after(kTurn), events_.descriptor())) on_frame(client, *frame);
    while (auto event = events_.take()) handle(client, core_.on(*event, Clock::now()));
    handle(client, core_.on(hooks_.tick(), Clock::now()));
    if (client.refused() && core_.view().fatal.ok()) {
      handle(client, core_.on(Event(Message(Refused{
                                  Code::refused, fmt::format("the controller at {} does not hold the secret of '{}': "
                                                             "give both sides the same secret_file",
                                                             config_.controller.address, config_.secret_file)})),
                              Clock::now()));
    }
  }

  void on_frame(ControlClient& client, const ControlFrame& frame) {
    try {
      handle(client, core_.on(Event(decode_message(frame.bytes)), Clock::now()));
    } catch (const Error& error) {
      log_warning("the controller sent a message that cannot be read: {}", error.what());
      if (error.code() == Code::refused) {
        handle(client, core_.on(Event(Message(Refused{Code::refused, error.what()})), Clock::now()));
      }
    }
  }

  void handle(ControlClient& client, std::vector<Action> actions) {
    for (Action& action : actions) {
      if (const auto* message = std::get_if<SendMessage>(&action)) {
        const bool taken = client.send(encode(message->message));
        if (std::exchange(taken_, taken) && !taken) log_warning("the controller does not take messages");
      } else {
        hooks_.act(action);
      }
    }
    {
      const std::scoped_lock lock(mutex_);
      view_ = core_.view();
    }
    changed_.notify_all();
    if (hooks_.published) hooks_.published(core_.view());
  }

  void refuse(Code code, const std::string& text) {
    const std::scoped_lock lock(mutex_);
    view_.fatal = Status(code, text);
    changed_.notify_all();
    log_error("{}", text);
  }

  const Config config_;
  const Secret secret_;
  Core core_;          // of the loop's thread
  bool taken_ = true;  // of the loop's thread: the last message was
  Hooks hooks_;
  Mailbox<Event> events_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  View view_;            // guarded by mutex_
  std::jthread thread_;  // last: joined before the rest goes
};

}  // namespace weightcast

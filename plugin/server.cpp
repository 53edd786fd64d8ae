#include "plugin/server.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "plugin/fabric_options.h"
#include "plugin/incarnation.h"
#include "plugin/landing.h"
#include "plugin/member_loop.h"
#include "plugin/peer_links.h"
#include "plugin/relay.h"
#include "plugin/serial_worker.h"
#include "plugin/verify.h"

namespace weightcast {
namespace {

using ServerLoop = MemberLoop<ServerCore, ServerEvent, ServerAction, ServerView>;

std::string_view dtype_of(const Entry& entry) {
  if (!entry.is_scales) return to_string(entry.recipe);
  if (entry.recipe == Recipe::nvfp4_e2m1_1x16) return "e4m3_scales";
  return stored_bytes(entry) == 1 ? "e8m0_scales" : "fp32_scales";
}

}  // namespace

struct Server::State final : FabricListener {
  State(const Config& config, std::string_view catalog_json)
      : config(config),
        catalog(own_catalog(config, Role::server, catalog_json)),
        landing(make_landing(config.landing, catalog, commit_threads_of(config.performance.threads))),
        verifier(catalog, threads_of(config.performance.threads)),
        relay(config, catalog),
        event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event.get() < 0) throw Error(Code::unavailable, "eventfd: the process has no free file descriptor");
    ServerLoop::Hooks hooks;
    hooks.act = [this](ServerAction& action) { act(action); };
    hooks.tick = [this]() -> ServerEvent { return ServerTick{relay.bytes_done()}; };
    hooks.published = [this](const ServerView& view) { announce(view); };
    const Join join = make_join(config, catalog, config.landing);
    loop = std::make_unique<ServerLoop>(config, Secret::load(config.secret_file),
                                        ServerCore(config, join, catalog, Clock::now()), std::move(hooks));
    loop->start();
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() override {
    relay.close();
    relay_worker.close();  // nothing is in flight then, so leaving is safe
    worker.close();
    loop->stop();
    landing.reset();
    fabric.reset();
  }

  // ---- on the loop's thread ----
  void act(ServerAction& action) {
    if (std::holds_alternative<OpenFabric>(action)) {
      worker.submit([this] { open(); });
    } else if (auto* adopt = std::get_if<AdoptTable>(&action)) {
      worker.submit([this, taken = std::move(*adopt)] { adopt_table(taken); });
    } else if (const auto* order = std::get_if<PassOn>(&action)) {
      relay.begin(order->version, order->token);
      relay_worker.submit([this, token = order->token] { pass_on(token); });
    } else if (const auto* stop = std::get_if<StopPassing>(&action)) {
      relay.stop(stop->token, stop->why);
    } else if (const auto* drop = std::get_if<DropServers>(&action)) {
      for (const std::uint32_t server : drop->servers) {
        links.forget({Role::server, server});
        relay.drop(server);
      }
    } else if (const auto* lease = std::get_if<SetLease>(&action)) {
      lease_until = lease->until;
      const std::scoped_lock lock(fabric_mutex);
      if (fabric_now != nullptr) fabric_now->set_lease(lease->until);
    }
  }
  void announce(const ServerView& view) {
    log_what_changed(view);
    if (std::exchange(announced, view.phase) == view.phase && view.fatal.ok()) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event.get(), &one, sizeof one);
  }
  // The engine goes on whatever happens here, so its log is where people read of it.
  void log_what_changed(const ServerView& view) {
    if (!std::exchange(failure_logged, !view.fatal.ok()) && !view.fatal.ok()) {
      log_error("{} takes no updates any more: {}", name_of(catalog), view.fatal.message());
    }
    if (std::exchange(refusal_logged, view.refusal.message()) != view.refusal.message() && !view.refusal.ok()) {
      log_error("{} serves version {} on, the run is refused: {}", name_of(catalog), view.committed_version,
                view.refusal.message());
    }
    if (std::exchange(ended_logged, view.ended_count) != view.ended_count) {
      log_warning("{} serves version {} on: {}", name_of(catalog), view.committed_version, view.ended_status.message());
    }
    if (std::exchange(silence_logged, view.controller_silent) == view.controller_silent) return;
    if (view.controller_silent) {
      log_warning(
          "{} serves version {} on and waits for {}: start trainer 0, which runs the controller, or the "
          "controller's own process again; this rank then joins by itself",
          name_of(catalog), view.committed_version, view.waiting_for);
    } else {
      log_info("{}: the controller at {} answers again", name_of(catalog), config.controller.address);
    }
  }

  // ---- on the worker's thread ----
  // Again when puts may be on their way that nobody can take back: what reached the old fabric reaches nothing.
  void open() {
    CardMade answer;
    verifier.clear();  // the memory that its table is about goes
    relay.clear();
    links.clear();
    try {
      {
        const std::scoped_lock lock(fabric_mutex);
        fabric_now = nullptr;
      }
      fabric.reset();
      fabric = open_fabric(fabric_options(config), *this);
      fabric->set_lease(lease_until);
      landing->prepare(*fabric);
      const std::scoped_lock lock(fabric_mutex);
      fabric_now = fabric.get();
      fabric->set_lease(lease_until);  // again: it may have been renewed before fabric_now was seen
      log_info("server {}: UCX {} from {}", config.rank, fabric->facts().library_version, fabric->facts().library_path);
      const Bytes card = fabric->card(landing->regions());
      answer.card.assign(reinterpret_cast<const std::uint8_t*>(card.data()),
                         reinterpret_cast<const std::uint8_t*>(card.data()) + card.size());
      answer.placements = landing->placements();
    } catch (const Error& error) {
      answer.status = Status(error.code(), fmt::format("{}: {}", name_of(catalog), error.what()));
    }
    loop->post(std::move(answer));
  }
  void adopt_table(const AdoptTable& order) {
    verifier.adopt(order.table, *landing);
    make_room_for_signals(order.table);
    if (!passes_on(order.table)) return relay.clear();
    const auto start = Clock::now();
    Linked answer;
    answer.generation = order.generation;
    try {
      std::set<RankKey> needed;
      for (const ExpectedSender& sender : order.table.senders) {
        for (const Forward& forward : sender.forwards) needed.insert({Role::server, forward.server});
      }
      const Deadline deadline = Deadline::after(Milliseconds(config.times.join_ms));
      Routes routes = links.make(*fabric, needed, order.peers, deadline);
      relay.adopt(order.table, *fabric, *landing, routes);
      answer.paths = std::move(routes.paths);
    } catch (const Error& error) {
      answer.status = error.status();
    }
    answer.first_contact_s = seconds_since(start);
    loop->post(std::move(answer));
  }
  // So that an update allocates nothing.
  void make_room_for_signals(const ServerTable& table) {
    std::size_t count = 0;
    for (const ExpectedSender& sender : table.senders) count += sender.signals.size();
    taken_signals.reserve(count);
    const std::scoped_lock lock(signals_mutex);
    signals.reserve(count);
  }
  // All signals that wait, those that came during the last call: their digests run side by side.
  void verify_all() {
    {
      const std::scoped_lock lock(signals_mutex);
      taken_signals.swap(signals);
    }
    for (const Signal& signal : taken_signals) verifier.begin(*landing, signal);
    for (const Signal& signal : taken_signals) verify(signal);
    taken_signals.clear();
  }
  void verify(const Signal& signal) {
    const auto start = Clock::now();
    SignalArrived arrived{signal, verifier.verify(*landing, signal), 0};
    arrived.seconds = seconds_since(start);
    if (arrived.verified.ok()) relay.verified(signal, verifier.forwarded_digests(signal));
    loop->post(std::move(arrived));
  }

  // ---- on the relay worker's thread ----
  void pass_on(std::uint64_t token) {
    RelayResult result = relay.run();
    if (result.cut_off) {
      for (const RankKey& peer : links.fail_all()) {  // they may take their bytes still, and must evade them
        loop->post(PeerFailed{peer.role, peer.rank, "it did not take what was passed on to it"});
      }
    }
    loop->post(PassedOn{token, std::move(result.status), result.cut_off});
  }

  // ---- on the fabric's thread ----
  void on_message(std::span<const std::byte> bytes) override {
    const FabricMessage message = parse_fabric_message(bytes);
    const auto* signal = std::get_if<Signal>(&message);
    if (signal == nullptr) return;
    const std::scoped_lock lock(signals_mutex);
    signals.push_back(*signal);
    if (signals.size() == 1) worker.submit([this] { verify_all(); });
  }
  void on_peer_failure(PeerId id, const Status& cause) override {
    if (const auto name = links.fail(id)) loop->post(PeerFailed{name->role, name->rank, cause.message()});
  }

  const Config config;
  const Catalog catalog;
  std::unique_ptr<Fabric> fabric;  // of the worker's thread until the end
  std::unique_ptr<LandingMemory> landing;
  Verifier verifier;  // of the worker's thread
  Relay relay;
  PeerLinks links;
  std::mutex signals_mutex;
  std::vector<Signal> signals;        // that wait to be verified; guarded by signals_mutex
  std::vector<Signal> taken_signals;  // of the worker's thread
  std::mutex fabric_mutex;
  Fabric* fabric_now = nullptr;                                     // guarded by fabric_mutex
  std::atomic<Clock::time_point> lease_until{Clock::time_point{}};  // no put before the controller's first answer
  FileDescriptor event;
  // Of the loop's thread: what was said last.
  ServerPhase announced = ServerPhase::connecting;
  bool failure_logged = false;
  bool silence_logged = false;
  std::string refusal_logged;
  std::uint64_t ended_logged = 0;
  std::mutex commit_mutex;
  SerialWorker worker;
  SerialWorker relay_worker;
  std::unique_ptr<ServerLoop> loop;
};

Server::Server(const Config& config, std::string_view catalog_json)
    : state_(std::make_unique<State>(config, catalog_json)) {}

Server::~Server() = default;

Status Server::wait_connected(Deadline deadline) const {
  const auto view = state_->loop->wait(
      deadline, [](const ServerView& now) { return now.phase != ServerPhase::connecting || !now.refusal.ok(); });
  if (view) return view->phase == ServerPhase::connecting ? view->refusal : view->fatal;
  return {Code::timed_out, fmt::format("{} is not connected: it waits for {}", name_of(state_->catalog),
                                       state_->loop->view().waiting_for)};
}

int Server::event_descriptor() const noexcept { return state_->event.get(); }

ServerView Server::state() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto drained = ::read(state_->event.get(), &count, sizeof count);
  return state_->loop->view();
}

Status Server::wait(ServerPhase phase, Deadline deadline, ServerView& view) {
  const std::uint64_t before = state_->loop->view().ended_count;
  const auto reached = state_->loop->wait(
      deadline, [&](const ServerView& now) { return now.phase == phase || now.ended_count != before; });
  if (!reached) {
    return {Code::timed_out, fmt::format("{} is in phase {}: it waits for {}", name_of(state_->catalog),
                                         to_string(state_->loop->view().phase), state_->loop->view().waiting_for)};
  }
  if (!reached->fatal.ok()) return reached->fatal;
  view = *reached;
  return reached->phase == phase ? Status() : reached->ended_status;
}

Status Server::allow(std::uint64_t version) {
  const ServerView view = state_->loop->view();
  if (!view.fatal.ok()) return view.fatal;
  if (view.phase != ServerPhase::allow_due || view.next_version != version) {
    return {Code::invalid_argument, fmt::format("{} did not ask to allow version {}: it is in phase {}",
                                                name_of(state_->catalog), version, to_string(view.phase))};
  }
  state_->loop->post(AllowCalled{version});
  return {};
}

Status Server::staged(std::uint64_t version, std::string& extents) const {
  const ServerView view = state_->loop->view();
  if (!view.fatal.ok()) return view.fatal;
  if ((view.phase != ServerPhase::ready && view.phase != ServerPhase::commit_due) || view.next_version != version) {
    return {Code::invalid_argument, fmt::format("{} holds no verified version {}: it is in phase {}",
                                                name_of(state_->catalog), version, to_string(view.phase))};
  }
  auto list = nlohmann::ordered_json::array();
  for (std::size_t index = 0; index < state_->catalog.entries.size(); ++index) {
    const Entry& entry = state_->catalog.entries[index];
    const std::byte* start = state_->landing->region_start(entry.region) + entry.byte_offset;
    const auto axes = static_cast<std::ptrdiff_t>(entry.box.axes);
    const auto stored = stored_box(entry, entry.box).extent;
    list.push_back(nlohmann::ordered_json{
        {"tensor", entry.tensor},
        {"parameter", entry.parameter},
        {"entry", index},
        {"address", reinterpret_cast<std::uint64_t>(start)},
        {"shape", std::vector(stored.begin(), stored.begin() + axes)},
        {"strides_bytes", std::vector(entry.strides_bytes.begin(), entry.strides_bytes.begin() + axes)},
        {"dtype", dtype_of(entry)},
        {"landing", to_string(entry.landing)}});
  }
  extents = list.dump();
  return {};
}

Status Server::commit(std::uint64_t version, double& stall_ms) {
  const std::scoped_lock one(state_->commit_mutex);
  const ServerView view = state_->loop->view();
  if (!view.fatal.ok()) return view.fatal;
  if (view.phase != ServerPhase::commit_due || view.next_version != version) {
    return {Code::invalid_argument,
            fmt::format("{} was not told to commit version {}: it is in phase {}, version {} is committed",
                        name_of(state_->catalog), version, to_string(view.phase), view.committed_version)};
  }
  const auto start = Clock::now();
  state_->landing->commit();
  stall_ms = seconds_since(start) * 1e3;
  state_->loop->post(CommitDone{version, stall_ms});
  (void)state_->loop->wait(Deadline::after(Milliseconds(state_->config.times.commit_ms)),
                           [&](const ServerView& now) { return now.committed_version == version; });
  return {};
}

std::string Server::status_json() const {
  const ServerView view = state_->loop->view();
  return nlohmann::ordered_json{{"role", "server"},
                                {"rank", state_->config.rank},
                                {"replica", state_->config.replica},
                                {"landing", state_->config.landing},
                                {"phase", to_string(view.phase)},
                                {"committed_version", view.committed_version},
                                {"next_version", view.next_version},
                                {"torn", view.torn},
                                {"verify_s", view.verify_seconds},
                                {"stall_ms", view.stall_ms},
                                {"ended", view.ended},
                                {"ended_because", view.ended_status.message()},
                                {"waiting_for", view.waiting_for},
                                {"error", view.fatal.message()}}
      .dump();
}

}  // namespace weightcast

#include "plugin/trainer.h"

#include <fmt/format.h>

#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "plugin/controller.h"
#include "plugin/fabric_options.h"
#include "plugin/incarnation.h"
#include "plugin/member_loop.h"
#include "plugin/peer_links.h"
#include "plugin/pipeline.h"
#include "plugin/serial_worker.h"
#include "plugin/trainer_core.h"

namespace weightcast {
namespace {

using TrainerLoop = MemberLoop<TrainerCore, TrainerEvent, TrainerAction, TrainerView>;

}  // namespace

struct Trainer::State final : FabricListener {
  State(const Config& config, std::string_view catalog_json)
      : config(config),
        catalog(own_catalog(config, Role::trainer, catalog_json)),
        secret(Secret::load(config.secret_file)) {
    if (config.controller.embedded && config.rank == 0) controller.emplace(config);
    TrainerLoop::Hooks hooks;
    hooks.act = [this](TrainerAction& action) { act(action); };
    hooks.tick = [this]() -> TrainerEvent { return TrainerTick{pipeline_bytes()}; };
    const Join join = make_join(config, catalog, "");
    loop = std::make_unique<TrainerLoop>(config, secret, TrainerCore(config, join, Clock::now()), std::move(hooks));
    loop->start();
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() override {
    if (Pipeline* running = pipeline_now.load()) running->close();
    worker.close();  // nothing is in flight then, so leaving is safe
    loop->stop();
    {
      const std::scoped_lock lock(pipeline_mutex);
      pipeline_now = nullptr;  // peers may still send
    }
    pipeline.reset();
    fabric.reset();
  }

  // ---- on the loop's thread ----
  void act(TrainerAction& action) {
    if (std::holds_alternative<OpenFabric>(action)) {
      worker.submit([this] { open(); });
    } else if (auto* link = std::get_if<Link>(&action)) {
      worker.submit([this, offer = std::move(link->offer)] { make_links(offer); });
    } else if (const auto* move = std::get_if<Move>(&action)) {
      token = move->token;
      worker.submit([this, order = *move] { run(order); });
    } else if (const auto* stop = std::get_if<StopMoving>(&action)) {
      if (Pipeline* running = pipeline_now.load()) running->stop(token, stop->why);
    } else if (const auto* drop = std::get_if<DropServers>(&action)) {
      Pipeline* running = pipeline_now.load();
      for (const std::uint32_t server : drop->servers) {
        links.forget({Role::server, server});
        if (running != nullptr) running->drop(server);
      }
    } else if (const auto* lease = std::get_if<SetLease>(&action)) {
      lease_until = lease->until;
      if (Fabric* open_now = fabric_now.load()) open_now->set_lease(lease->until);
    }
  }
  [[nodiscard]] std::uint64_t pipeline_bytes() const {
    const Pipeline* running = pipeline_now.load();
    return running == nullptr ? 0 : running->bytes_done();
  }

  // ---- on the worker's thread ----
  void open() {
    FabricOpened answer;
    try {
      fabric = open_fabric(fabric_options(config), *this);
      fabric->set_lease(lease_until);
      std::vector<RegionId> regions;
      for (const Region& region : catalog.regions) {
        regions.push_back(
            fabric->register_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, region.kind}));
      }
      pipeline = std::make_unique<Pipeline>(config, *fabric, catalog, std::move(regions));
      pipeline_now = pipeline.get();
      fabric_now = fabric.get();
      fabric->set_lease(lease_until);  // again: it may have been renewed before fabric_now was seen
      const Bytes card = fabric->card({});
      answer.card.assign(reinterpret_cast<const std::uint8_t*>(card.data()),
                         reinterpret_cast<const std::uint8_t*>(card.data()) + card.size());
      log_info("trainer {}: UCX {} from {}", config.rank, fabric->facts().library_version,
               fabric->facts().library_path);
    } catch (const Error& error) {
      answer.status = error.status();
    }
    loop->post(std::move(answer));
  }

  void make_links(const TableOffer& offer) {
    const auto start = Clock::now();
    Linked answer;
    answer.generation = offer.generation;
    try {
      TrainerTable table = decode_trainer_table(offer.table, catalog);
      std::set<RankKey> needed;
      for (const TrainerStep& step : table.steps) {
        for (const TargetExtent& target : step.targets) needed.insert({Role::server, target.server});
      }
      for (const TrainerScaleStep& step : table.scale_steps) {
        for (const TargetExtent& target : step.targets) needed.insert({Role::server, target.server});
      }
      for (const AmaxMessage& exchange : table.amax_out) needed.insert({Role::trainer, exchange.to});
      const Deadline deadline = Deadline::after(Milliseconds(config.times.join_ms));
      Routes routes = links.make(*fabric, needed, offer.peers, deadline);
      pipeline->adopt(std::move(table), routes);
      answer.paths = std::move(routes.paths);
    } catch (const Error& error) {
      answer.status = error.status();
    }
    answer.first_contact_s = seconds_since(start);
    loop->post(std::move(answer));
  }

  void run(const Move& order) {
    const MoveResult result = pipeline->move(order.version, order.token);
    if (result.cut_off) {
      for (const RankKey& peer : links.fail_all()) {  // they may take their bytes still, and must evade them
        if (peer.role == Role::server) loop->post(PeerFailed{peer.role, peer.rank, "it did not take its bytes"});
      }
    }
    loop->post(Moved{order.version, order.token, result.status, result.bytes, result.seconds, result.cast_seconds,
                     result.cut_off});
  }

  // ---- on the fabric's thread ----
  void on_message(std::span<const std::byte> bytes) override {
    const FabricMessage message = parse_fabric_message(bytes);
    const auto* amax = std::get_if<AmaxValues>(&message);
    const std::scoped_lock lock(pipeline_mutex);  // until on_amax() returns the pipeline stays
    Pipeline* running = pipeline_now.load();
    if (amax != nullptr && running != nullptr) running->on_amax(*amax);
  }
  void on_peer_failure(PeerId id, const Status& cause) override {
    if (const auto name = links.fail(id)) loop->post(PeerFailed{name->role, name->rank, cause.message()});
  }

  const Config config;
  const Catalog catalog;
  const Secret secret;
  std::optional<Controller> controller;
  std::unique_ptr<Fabric> fabric;      // of the worker's thread until the end
  std::unique_ptr<Pipeline> pipeline;  // likewise
  std::atomic<Fabric*> fabric_now{nullptr};
  std::atomic<Clock::time_point> lease_until{Clock::time_point{}};  // no put before the controller's first answer
  std::atomic<Pipeline*> pipeline_now{nullptr};
  std::mutex pipeline_mutex;
  PeerLinks links;
  std::uint64_t token = 0;  // of the last Move; of the loop's thread
  SerialWorker worker;
  std::unique_ptr<TrainerLoop> loop;
  std::mutex push_mutex;  // one push at a time
  std::atomic<std::uint64_t> tickets{0};
};

Trainer::Trainer(const Config& config, std::string_view catalog_json)
    : state_(std::make_unique<State>(config, catalog_json)) {}

Trainer::~Trainer() = default;

Status Trainer::wait_connected(Deadline deadline) const {
  const auto view = state_->loop->wait(deadline, [](const TrainerView& now) { return now.connected; });
  if (view) return view->fatal;
  return {Code::timed_out, fmt::format("trainer {} is not connected: it waits for {}", state_->config.rank,
                                       state_->loop->view().waiting_for)};
}

Status Trainer::push(std::uint64_t version) {
  const std::unique_lock one(state_->push_mutex, std::try_to_lock);
  const TrainerView before = state_->loop->view();
  if (!before.fatal.ok()) return before.fatal;
  if (!one.owns_lock() || before.pushing != 0) {
    return {Code::invalid_argument, fmt::format("trainer {} still pushes version {}: wait() for it before version {}",
                                                state_->config.rank, before.pushing, version)};
  }
  if (version == 0) return {Code::invalid_argument, "versions begin at 1; 0 is what the engine loaded itself"};
  const std::uint64_t ticket = ++state_->tickets;
  const auto& times = state_->config.times;
  const auto released = [&](const TrainerView& view) { return view.push_ticket == ticket && view.released == version; };
  state_->loop->post(PushCalled{version, ticket});
  // The controller bounds the update; this bound is for when there is none.
  const Milliseconds bound(times.update_ms + 2 * times.death_busy_ms);
  auto view = state_->loop->wait(Deadline::after(bound), released);
  if (!view) {
    const Status why(Code::timed_out,
                     fmt::format("trainer {}, version {}: not sent within {} ms: it waits for {}", state_->config.rank,
                                 version, bound.count(), state_->loop->view().waiting_for));
    state_->loop->post(PushCancelled{version, why});
    view = state_->loop->wait(Deadline::after(bound), released);
    if (!view) return why;
  }
  if (!view->fatal.ok()) return view->fatal;
  return view->ended == version ? view->ended_status : Status();
}

Status Trainer::wait(std::uint64_t version, Deadline deadline, std::string& report) const {
  const TrainerView before = state_->loop->view();
  if (before.fatal.ok() && before.pushing != version && before.ended != version) {
    return {Code::invalid_argument, fmt::format("trainer {} has not pushed version {}", state_->config.rank, version)};
  }
  const auto view = state_->loop->wait(deadline, [&](const TrainerView& now) { return now.ended == version; });
  if (!view) {
    return {Code::timed_out, fmt::format("trainer {}, version {}: waits for {}", state_->config.rank, version,
                                         state_->loop->view().waiting_for)};
  }
  if (!view->fatal.ok()) return view->fatal;
  if (view->ended_status.ok()) report = view->report;
  return view->ended_status;
}

std::string Trainer::status_json() const {
  const TrainerView view = state_->loop->view();
  nlohmann::ordered_json status{{"role", "trainer"},
                                {"rank", state_->config.rank},
                                {"connected", view.connected},
                                {"first_contact_s", view.first_contact_s},
                                {"paths", view.paths},
                                {"pushing", view.pushing},
                                {"released", view.released},
                                {"ended", view.ended},
                                {"waiting_for", view.waiting_for},
                                {"error", view.fatal.message()}};
  if (state_->controller) status["controller"] = nlohmann::ordered_json::parse(state_->controller->status_json());
  return status.dump();
}

}  // namespace weightcast

#include "tests/support/protocol_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "tests/support/small_cluster.h"

namespace weightcast::simulation {
namespace {

constexpr Milliseconds kTick{50};
constexpr Milliseconds kFaultsLast{6000};
constexpr Milliseconds kSettles{9000};  // longer than any bound of quick_config()
constexpr Milliseconds kCalmAtMost{30000};

Config quick_config(const WorldOptions& options) {
  Config config = small_config(options.trainers, options.replicas, options.servers_per_replica);
  config.landing = options.in_place ? "in_place" : "staged";
  config.times = {.join_ms = 1500,
                  .update_ms = 1500,
                  .commit_ms = 800,
                  .heartbeat_busy_ms = 100,
                  .heartbeat_idle_ms = 200,
                  .death_busy_ms = 500,
                  .death_idle_ms = 800,
                  .lease_ms = 300};
  return config;
}

}  // namespace

World::World(const WorldOptions& options) : options_(options), config_(quick_config(options)), random_(options.seed) {
  now_ += Milliseconds(1000);
  start_controller();
  for (std::uint32_t rank = 0; rank < options.trainers; ++rank) start_process({Role::trainer, rank});
  for (std::uint32_t rank = 0; rank < options.replicas * options.servers_per_replica; ++rank) {
    start_process({Role::server, rank});
  }
}

void World::run() {
  if (options_.faults) {
    for (int i = 0; i < 5; ++i) at(between(300, kFaultsLast.count()), [this] { fault(); });
    run_until(now_ + kFaultsLast, [] { return false; });
  }
  calm();
  callers_rest_ = true;
  run_until(now_ + kSettles, [] { return false; });
  check_agreement(false);
  callers_rest_ = false;
  const std::uint64_t first = app_version_ + 1;
  app_version_ = first;
  const auto finished = [&] {
    for (const auto& [version, trainers] : succeeded_) {
      if (version >= first && trainers.size() == options_.trainers) return true;
    }
    return !broken_.empty();
  };
  run_until(now_ + kCalmAtMost, finished);
  expect(finished(), "a push after the faults succeeds");
  callers_rest_ = true;
  run_until(now_ + kSettles, [] { return false; });
  check_agreement(true);
}

// At rest the ranks of a replica hold the same version; until the next update, but for those whose engine was
// started anew.
void World::check_agreement(bool also_replaced) {
  for (std::uint32_t replica = 0; replica < options_.replicas; ++replica) {
    std::set<std::uint64_t> held;
    bool replaced = false;
    for (std::uint32_t i = 0; i < options_.servers_per_replica; ++i) {
      const std::uint32_t rank = replica * options_.servers_per_replica + i;
      const ServerView& view = current({Role::server, rank})->server->view();
      replaced = replaced || replaced_.contains(rank);
      held.insert(view.committed_version);
      expect(view.phase == ServerPhase::idle, fmt::format("server {} comes to rest", rank));
      expect(!view.torn || !also_replaced, fmt::format("server {} is repaired", rank));
    }
    expect(held.size() == 1 || (replaced && !also_replaced),
           fmt::format("the ranks of replica {} hold one version", replica));
  }
}

// ---- time ----

void World::at(Clock::duration delay, std::function<void()> what) {
  queue_.push_back({now_ + delay, ++order_, std::move(what)});
  std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
}

void World::at_process(Process& process, Clock::duration delay, std::function<void()> what) {
  at(delay, [&process, what = std::move(what)] {
    if (!process.alive) return;
    if (process.stopped) {
      process.deferred.push_back(what);
    } else {
      what();
    }
  });
}

void World::run_until(Clock::time_point end, const std::function<bool()>& done) {
  while (!queue_.empty() && queue_.front().when <= end && !done()) {
    std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
    const Timed next = std::move(queue_.back());
    queue_.pop_back();
    now_ = next.when;
    next.what();
  }
  if (!done()) now_ = std::max(now_, end);
}

Milliseconds World::between(std::int64_t least_ms, std::int64_t most_ms) {
  return Milliseconds(std::uniform_int_distribution<std::int64_t>(least_ms, most_ms)(random_));
}

Milliseconds World::mostly_between(std::int64_t least_ms, std::int64_t most_ms) {
  const bool slow = options_.faults && !is_calm_ && chance(0.03);
  return slow ? between(most_ms, most_ms + 400) : between(least_ms, most_ms);
}

// ---- processes and connections ----

void World::start_controller() {
  controller_ = std::make_unique<ControllerCore>(config_, ++names_, now_);
  const std::uint64_t epoch = ++epoch_;
  say(fmt::format("controller {} starts", epoch));
  const auto tick = [this, epoch](const auto& self) -> void {
    if (epoch != epoch_ || !controller_) return;
    controller_event(Tick{});
    at(kTick, [self] { self(self); });
  };
  at(kTick, [tick] { tick(tick); });
  for (const auto& process : processes_) at(Milliseconds(1), [this, p = process.get()] { deliver_up(*p); });
}

Process& World::start_process(RankKey key) {
  auto& process = *processes_.emplace_back(std::make_unique<Process>());
  process.key = key;
  process.incarnation = ++names_;
  say(fmt::format("{} starts as {}", to_string(key), process.incarnation));
  const Join join = small_join(config_, key.role, key.rank, process.incarnation);
  if (key.role == Role::trainer) {
    process.trainer = std::make_unique<TrainerCore>(config_, join, now_);
    for (const auto& send : process.trainer->start(now_)) send_up(process, std::get<SendMessage>(send).message);
  } else {
    process.server = std::make_unique<ServerCore>(config_, join, small_catalog(config_, key.role, key.rank), now_);
    for (const auto& send : process.server->start(now_)) send_up(process, std::get<SendMessage>(send).message);
  }
  tick(process);
  return process;
}

void World::tick(Process& process) {
  at_process(process, kTick, [this, &process] {
    if (process.trainer) {
      trainer_event(process, TrainerTick{});
      drive_push(process);
    } else {
      server_event(process, ServerTick{});
      drive_host(process);
    }
    tick(process);
  });
}

Process* World::current(RankKey key) {
  for (auto it = processes_.rbegin(); it != processes_.rend(); ++it) {
    if ((*it)->key == key) return it->get();
  }
  return nullptr;
}

void World::send_up(Process& process, const Message& message) {
  const auto least = process.outbox.empty() ? now_ : process.outbox.back().arrives;
  process.outbox.push_back({std::max(least, now_ + mostly_between(0, 8)), controller_ ? epoch_ : 0, message});
  at(process.outbox.back().arrives - now_, [this, &process] { deliver_up(process); });
}

std::string World::connection_of(const Process& process) const {
  return fmt::format("{}.{}.{}", process.incarnation, epoch_, process.connection);
}

// Frames under way to a controller that dies are lost; those that were sent while there was none wait for the next.
void World::deliver_up(Process& process) {
  while (!process.outbox.empty() && process.outbox.front().arrives <= now_) {
    const Frame frame = process.outbox.front();
    const bool lost = frame.epoch != 0 && frame.epoch != epoch_;
    if (!lost && !controller_) return;
    process.outbox.pop_front();
    if (lost || (frame.epoch != 0 && !controller_)) continue;
    const std::string connection = connection_of(process);
    connections_[connection] = &process;
    controller_event(FrameArrived{connection, frame.message});
  }
}

void World::deliver_down(Process& process) {
  while (process.alive && !process.stopped && !process.inbox.empty() && process.inbox.front().arrives <= now_) {
    const Message message = process.inbox.front().message;
    process.inbox.pop_front();
    if (process.trainer) {
      trainer_event(process, message);
    } else {
      server_event(process, message);
    }
  }
}

void World::controller_event(const ControllerEvent& event) {
  for (const ControllerAction& action : controller_->on(event, now_)) {
    if (const auto* send = std::get_if<SendFrame>(&action)) {
      Process& process = *connections_.at(send->connection);
      if (!process.alive || send->connection != connection_of(process)) continue;
      const auto least = process.inbox.empty() ? now_ : process.inbox.back().arrives;
      process.inbox.push_back({std::max(least, now_ + mostly_between(0, 8)), epoch_, send->message});
      at(process.inbox.back().arrives - now_, [this, &process] { deliver_down(process); });
      if (std::holds_alternative<Commit>(send->message) && options_.faults && !is_calm_ && chance(0.02)) {
        reset_connection(process);
      }
      crash_after(send->message);
    } else if (const auto* plan = std::get_if<MakePlan>(&action)) {
      make_plan(*plan);
    } else {
      say("controller: " + std::get<Note>(action).text);
    }
  }
}

void World::make_plan(const MakePlan& request) {
  PlanMade plan{request.generation, {}, {}, {}, {}};
  for (const Catalog& trainer : request.catalogs.trainers) {
    if (trainer.entries.empty()) plan.status = Status(Code::invalid_argument, "a trainer's part has no source");
    plan.tables[{Role::trainer, trainer.rank}] = {1};
  }
  std::vector<std::uint32_t> servers;
  for (const Catalog& server : request.catalogs.servers) {
    plan.tables[{Role::server, server.rank}] = small_server_table(config_, server.rank);
    if (!server.entries.empty()) servers.push_back(server.rank);
  }
  if (options_.relay) relay_through_first(servers, plan);
  at(between(1, 20), [this, plan = std::move(plan), epoch = epoch_] {
    if (controller_ && epoch == epoch_) controller_event(plan);
  });
}

void World::expect(bool holds, const std::string& rule) {
  if (holds) return;
  broken_.push_back(fmt::format("seed {}, {} ms: broken: {}", options_.seed,
                                std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count(), rule));
  say(broken_.back());
}

void World::say(const std::string& line) {
  if (!options_.verbose) return;
  std::printf("%6lld  %s\n",
              static_cast<long long>(std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()).count()),
              line.c_str());
}

// ---- faults ----

void World::kill(Process& process) {
  say(fmt::format("{} ({}) is killed", to_string(process.key), process.incarnation));
  process.alive = false;
  if (process.server) replaced_.insert(process.key.rank);
}

void World::restart(RankKey key, Milliseconds delay) {
  at(delay, [this, key] {
    if (!current(key)->alive) start_process(key);
  });
}

void World::stop(Process& process, Milliseconds how_long) {
  say(fmt::format("{} ({}) is stopped for {} ms", to_string(process.key), process.incarnation, how_long.count()));
  process.stopped = true;
  at(how_long, [this, &process] {
    if (!process.alive || !process.stopped) return;
    say(fmt::format("{} ({}) continues", to_string(process.key), process.incarnation));
    process.stopped = false;
    for (const auto& what : std::exchange(process.deferred, {})) at_process(process, between(0, 2), what);
    deliver_down(process);
  });
}

void World::crash_controller() {
  if (!controller_) return;
  say("the controller is killed");
  controller_.reset();
  for (const auto& process : processes_) {  // what had not left it yet is lost
    if (!chance(0.5)) continue;
    while (!process->inbox.empty() && process->inbox.back().epoch == epoch_) process->inbox.pop_back();
  }
  at(between(50, 1500), [this] {
    if (!controller_) start_controller();
  });
}

// What is under way is lost both ways; the controller sees another connection from here on.
void World::reset_connection(Process& process) {
  say(fmt::format("the connection of {} ({}) is reset", to_string(process.key), process.incarnation));
  ++process.connection;
  process.inbox.clear();
  process.outbox.clear();
}

// The moments that matter most.
void World::crash_after(const Message& message) {
  if (!options_.faults || is_calm_) return;
  const bool decides = std::holds_alternative<Commit>(message) || std::holds_alternative<Done>(message) ||
                       std::holds_alternative<Abort>(message);
  if (decides && chance(0.01)) at(between(0, 3), [this] { crash_controller(); });
}

void World::fault() {
  if (is_calm_) return;
  const int kind = std::uniform_int_distribution<>(0, 9)(random_);
  if (kind < 2) return crash_controller();
  const bool trainer = chance(0.6);
  const std::uint32_t count = trainer ? options_.trainers : options_.replicas * options_.servers_per_replica;
  const RankKey key{trainer ? Role::trainer : Role::server,
                    std::uniform_int_distribution<std::uint32_t>(0, count - 1)(random_)};
  Process& victim = *current(key);
  if (!victim.alive || victim.stopped) return;
  if (kind == 2) return reset_connection(victim);
  // A trainer stopped in mid-put can write into live weights later: in place nothing protects from that.
  if (kind < 5 || (options_.in_place && trainer)) {
    kill(victim);
    restart(key, between(20, 1500));
  } else if (kind < 9 || !trainer) {
    stop(victim, between(20, 3000));
  } else {  // another process takes the rank while this one is stopped, and this one continues later
    stop(victim, between(1500, 4000));
    at(between(100, 1000), [this, key] {
      if (!is_calm_) start_process(key);
    });
  }
}

// Everybody is alive again, one process a rank.
void World::calm() {
  is_calm_ = true;
  say("calm");
  if (!controller_) start_controller();
  for (std::size_t i = 0; i < processes_.size(); ++i) {
    Process& process = *processes_[i];
    if (current(process.key) != &process) continue;
    if (!process.alive) start_process(process.key);
  }
}

}  // namespace weightcast::simulation

// The members' side of the world: the pipeline that puts, the memory that it puts into, and the hosts.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tests/support/protocol_world.h"

namespace weightcast::simulation {

constexpr Milliseconds kTickOfPush{50};  // World::tick

// ---- trainers ----

void World::trainer_event(Process& process, const TrainerEvent& event) {
  for (const TrainerAction& action : process.trainer->on(event, now_)) {
    if (const auto* send = std::get_if<SendMessage>(&action)) {
      send_up(process, send->message);
    } else if (std::holds_alternative<OpenFabric>(action)) {
      at_process(process, between(1, 30), [this, &process] { trainer_event(process, FabricOpened{{}, {1}}); });
    } else if (const auto* offer = std::get_if<Link>(&action)) {
      link(process, offer->offer);
    } else if (const auto* order = std::get_if<Move>(&action)) {
      move(process, *order);
    } else if (const auto* stopping = std::get_if<StopMoving>(&action)) {
      if (!process.stop) process.stop = stopping->why;
    } else if (const auto* drop = std::get_if<DropServers>(&action)) {
      for (Target& target : process.targets) {
        if (std::count(drop->servers.begin(), drop->servers.end(), target.server) != 0) target.dropped = true;
      }
    } else {
      process.lease = std::get<SetLease>(action).until;
    }
  }
}

void World::link(Process& process, const TableOffer& offer) {
  std::vector<Target> targets;
  for (const PeerCard& peer : offer.peers) {
    const bool is_fed = offer.table.size() == 1 || peer.rank == offer.table[1];  // see relay_through_first()
    if (peer.role != Role::server || !is_fed) continue;
    std::uint64_t memory = 0;
    std::memcpy(&memory, peer.card.data(), sizeof memory);
    targets.push_back({peer.rank, peer.incarnation, memory, false, false});
  }
  at_process(process, between(5, 60), [this, &process, targets, generation = offer.generation] {
    Linked answer{generation, {}, 0, {}};
    for (const Target& target : targets) {
      const Process* server = current({Role::server, target.server});
      if (!server->alive || server->incarnation != target.incarnation) {
        answer.status = Status(Code::unreachable, fmt::format("server {} does not answer", target.server));
      }
    }
    process.targets = targets;
    trainer_event(process, answer);
  });
}

void World::move(Process& process, const Move& order) {
  process.stop.reset();
  expect(process.app_version == order.version, "a trainer moves only what its caller pushes");
  at_process(process, between(1, 20), [this, &process, order] { put_next(process, order.version, order.token, 0); });
}

void World::put_next(Process& process, std::uint64_t version, std::uint64_t token, std::size_t index) {
  if (process.stop) return end_move(process, version, token, *process.stop);
  if (index == process.targets.size()) return end_move(process, version, token, {});
  Target& target = process.targets[index];
  if (target.dropped) return put_next(process, version, token, index + 1);
  if (now_ >= process.lease) return end_move(process, version, token, Status(Code::refused, "the lease has run out"));
  const Process* server = current({Role::server, target.server});
  if (target.failed || !server->alive || server->incarnation != target.incarnation) {
    if (!std::exchange(target.failed, true)) {
      trainer_event(process, PeerFailed{Role::server, target.server, "connection reset"});
    }
    at_process(process, Milliseconds(30), [=, this, &process] { put_next(process, version, token, index); });
    return;
  }
  // From here to the landing the put is in flight: a process that is stopped here completes it when it continues.
  const Stamp stamp{version, token, process.content};
  at_process(process, mostly_between(1, 40), [=, this, &process, put = target] {
    land(put, process.key.rank, stamp);
    at(mostly_between(0, 10), [=, this, &process] { signal(process, put, stamp, 0); });
    at_process(process, between(1, 15), [=, this, &process] { put_next(process, version, token, index + 1); });
  });
}

void World::land(const Target& target, std::uint32_t trainer, const Stamp& stamp) {
  Memory& memory = memories_[target.memory];
  if (memory.closed) return;  // it arrives nowhere
  expect(memory.attempt == stamp.token && !memory.sealed,
         fmt::format("a put of trainer {}, version {}, lands in memory of another attempt on server {}", trainer,
                     stamp.version, target.server));
  memory.parts[trainer] = stamp;
}

void World::signal(const Process& process, const Target& target, const Stamp& stamp, std::uint32_t ordinal) {
  Process* server = current({Role::server, target.server});
  if (server->incarnation != target.incarnation) return;
  hear_signal(*server, {stamp.token, stamp.version, process.key.role, process.key.rank, target.server, ordinal, 8,
                        stamp.content});
}

void World::end_move(Process& process, std::uint64_t version, std::uint64_t token, Status status) {
  if (status.ok() && chance(options_.faults && !is_calm_ ? 0.03 : 0)) status = Status(Code::corrupted, "NaN");
  trainer_event(process, Moved{version, token, std::move(status), 8, 0.1, 0.1, false});
}

// The caller: pushes, waits for the end, pushes again. Each push must end.
void World::drive_push(Process& process) {
  const TrainerView& view = process.trainer->view();
  const auto& times = config_.times;
  const std::uint64_t version = process.app_version;
  if (!view.fatal.ok()) {
    kill(process);
    restart(process.key, Milliseconds(300));
    return;
  }
  if (version == 0) {
    if (callers_rest_ || !chance(0.5)) return;
    process.app_version = chance(is_calm_ ? 0 : 0.02) ? app_version_ + 1 : app_version_;
    process.content = ++names_;
    pushed_[{process.key.rank, process.app_version}] = process.content;
    process.push_spent = {};
    process.cancelled = false;
    trainer_event(process, PushCalled{process.app_version, ++process.tickets});
    return;
  }
  process.push_spent += kTickOfPush;
  const Milliseconds bound(times.update_ms + 2 * times.death_busy_ms);
  const bool released = view.released == version;
  if (released) process.content = ++names_;  // the source may change now
  if (!released && !process.cancelled && process.push_spent > bound) {
    process.cancelled = true;
    trainer_event(process, PushCancelled{version, {Code::timed_out, "cancelled"}});
  }
  expect(process.push_spent < 4 * bound + Milliseconds(times.commit_ms),
         fmt::format("the push of version {} by trainer {} ends ({}released; waits for {})", version, process.key.rank,
                     released ? "" : "not ", view.waiting_for));
  if (view.ended != version || !released) return;
  ++pushes_ended_;
  process.app_version = 0;
  if (view.ended_status.ok()) {
    succeeded_[version].insert(process.key.rank);
    app_version_ = std::max(app_version_, version + 1);
  } else if (chance(0.5)) {
    app_version_ = std::max(app_version_, version + 1);
  }
}

// ---- servers ----

void World::server_event(Process& process, const ServerEvent& event) {
  for (const ServerAction& action : process.server->on(event, now_)) {
    if (const auto* send = std::get_if<SendMessage>(&action)) {
      if (const auto* armed = std::get_if<Armed>(&send->message)) {
        memories_[process.memory].attempt = armed->token;
        memories_[process.memory].sealed = false;
      }
      if (const auto* ready = std::get_if<Ready>(&send->message)) ready_.insert({process.key.rank, ready->version});
      send_up(process, send->message);
    } else if (const auto* adopt = std::get_if<AdoptTable>(&action)) {
      if (passes_on(adopt->table)) link_onward(process, *adopt);
    } else if (const auto* order = std::get_if<PassOn>(&action)) {
      pass_on(process, *order);
    } else if (const auto* stopping = std::get_if<StopPassing>(&action)) {
      if (!process.stop && stopping->token == process.pass_token) process.stop = stopping->why;
    } else if (const auto* drop = std::get_if<DropServers>(&action)) {
      for (Target& target : process.targets) {
        if (std::count(drop->servers.begin(), drop->servers.end(), target.server) != 0) target.dropped = true;
      }
    } else if (const auto* lease = std::get_if<SetLease>(&action)) {
      process.lease = lease->until;
    } else {
      if (const auto before = memories_.find(process.memory); before != memories_.end()) {
        ++fabrics_closed_;
        before->second.closed = true;
      }
      at_process(process, between(1, 30), [this, &process] { take_memory(process); });
    }
  }
}

void World::take_memory(Process& process) {
  process.memory = ++names_;
  std::vector<std::uint8_t> card(sizeof process.memory);
  std::memcpy(card.data(), &process.memory, sizeof process.memory);
  server_event(process, CardMade{{}, card, {{0, 0}}});
}

// Verifies what the signal covers, as the server's worker does, and tells the core.
void World::hear_signal(Process& process, const Signal& signal) {
  at_process(process, mostly_between(1, 20), [this, &process, signal] {
    Memory& memory = memories_[process.memory];
    const std::uint32_t trainer = signal.role == Role::trainer ? signal.sender : signal.ordinal;
    const Stamp& stamp = memory.parts[trainer];
    if (memory.attempt == signal.token) {
      expect(stamp.token == signal.token && stamp.content == signal.digest,
             fmt::format("what server {} verifies is what trainer {} sent", process.key.rank, trainer));
    }
    SignalArrived arrived{signal, {}, 0.1};
    if (chance(options_.faults && !is_calm_ ? 0.03 : 0)) arrived.verified = Status(Code::corrupted, "digest");
    if (arrived.verified.ok() && signal.role == Role::trainer && signal.token == process.pass_token) {
      for (std::size_t to = 0; to < process.targets.size(); ++to) process.pass_queue.emplace_back(trainer, to);
    }
    server_event(process, arrived);
    if (process.server->view().phase == ServerPhase::ready && memory.attempt == signal.token) memory.sealed = true;
  });
}

void World::drive_host(Process& process) {
  const ServerView& view = process.server->view();
  if (!view.fatal.ok()) {
    kill(process);
    restart(process.key, Milliseconds(300));
    return;
  }
  if (view.phase == ServerPhase::allow_due && chance(0.5)) server_event(process, AllowCalled{view.next_version});
  if (view.phase != ServerPhase::commit_due || process.committing == view.next_version) return;
  process.committing = view.next_version;
  const bool slow = !is_calm_ && chance(0.05);
  at_process(process, slow ? between(500, 2000) : between(1, 80),
             [this, &process, version = view.next_version] { commit(process, version); });
}

void World::commit(Process& process, std::uint64_t version) {
  const Memory& memory = memories_[process.memory];
  const std::uint64_t token = memory.attempt;
  const auto known = token_of_version_.emplace(version, token).first;
  expect(known->second == token, fmt::format("version {} is one attempt's everywhere", version));
  for (std::uint32_t trainer = 0; trainer < options_.trainers; ++trainer) {
    const auto part = memory.parts.find(trainer);
    expect(part != memory.parts.end() && part->second.version == version && part->second.token == token,
           fmt::format("server {} commits version {} whole", process.key.rank, version));
  }
  const std::uint32_t first = process.server->catalog().replica * options_.servers_per_replica;
  for (std::uint32_t rank = first; rank < first + options_.servers_per_replica; ++rank) {
    expect(ready_.contains({rank, version}), fmt::format("server {} was ready for version {}", rank, version));
  }
  ++commits_;
  server_event(process, CommitDone{version, 1});
}

}  // namespace weightcast::simulation

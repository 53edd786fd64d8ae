// Servers of the world that pass on: the first one feeds all others.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tests/support/protocol_world.h"
#include "tests/support/small_cluster.h"

namespace weightcast::simulation {

// A trainer's table is its own business here; its second byte names the only server that it puts to.
void World::relay_through_first(const std::vector<std::uint32_t>& servers, PlanMade& plan) const {
  if (servers.size() < 2) return;
  const std::uint32_t first = servers.front();
  for (auto& [key, table] : plan.tables) {
    if (key.role == Role::trainer) table = {1, static_cast<std::uint8_t>(first)};
  }
  ServerTable feeds;
  feeds.server = first;
  ServerTable fed;
  fed.senders.push_back({Role::server, first, 0, {}, {}, {}});
  for (std::uint32_t trainer = 0; trainer < options_.trainers; ++trainer) {
    const Piece part{0, small_part(kElementsOfPart * trainer, kElementsOfPart)};
    ExpectedSender sender{Role::trainer, trainer, kPartBytes, {part}, {{1, kPartBytes}}, {}};
    for (const std::uint32_t server : servers) {
      if (server != first) sender.forwards.push_back({0, server, trainer, {{0, {server, 0, 0, {2}}}}});
    }
    feeds.senders.push_back(std::move(sender));
    fed.senders.front().bytes += kPartBytes;
    fed.senders.front().pieces.push_back(part);
    fed.senders.front().signals.push_back({1, kPartBytes});
  }
  plan.tables[{Role::server, first}] = encode(feeds);
  for (const std::uint32_t server : servers) {
    if (server == first) continue;
    fed.server = server;
    plan.tables[{Role::server, server}] = encode(fed);
    plan.feeds[first].insert(server);
  }
}

void World::link_onward(Process& process, const AdoptTable& order) {
  std::vector<Target> targets;
  for (const PeerCard& peer : order.peers) {
    if (peer.role != Role::server || peer.card.empty()) continue;
    std::uint64_t memory = 0;
    std::memcpy(&memory, peer.card.data(), sizeof memory);
    targets.push_back({peer.rank, peer.incarnation, memory, false, false});
  }
  process.targets = targets;
  at_process(process, between(5, 60), [this, &process, targets, generation = order.generation] {
    Linked answer{generation, {}, 0, {}};
    for (const Target& target : targets) {
      const Process* server = current({Role::server, target.server});
      if (!server->alive || server->incarnation != target.incarnation) {
        answer.status = Status(Code::unreachable, fmt::format("server {} does not answer", target.server));
      }
    }
    server_event(process, answer);
  });
}

void World::pass_on(Process& process, const PassOn& order) {
  expect(process.pass_token == 0, fmt::format("server {} passes on one attempt at a time", process.key.rank));
  process.stop.reset();
  process.pass_token = order.token;
  process.pass_queue.clear();
  process.pass_left = process.targets.size() * options_.trainers;
  at_process(process, between(1, 20), [this, &process, token = order.token] { pass_next(process, token); });
}

void World::pass_next(Process& process, std::uint64_t token) {
  if (process.stop) return end_passing(process, token, *process.stop);
  if (process.pass_left == 0) return end_passing(process, token, {});
  const auto later = [=, this, &process](Milliseconds wait) {
    at_process(process, wait, [=, this, &process] { pass_next(process, token); });
  };
  if (process.pass_queue.empty()) return later(Milliseconds(10));
  const auto [trainer, to] = process.pass_queue.front();
  Target& target = process.targets[to];
  if (now_ >= process.lease) return end_passing(process, token, Status(Code::refused, "the lease has run out"));
  const Process* server = current({Role::server, target.server});
  const bool is_gone = target.failed || !server->alive || server->incarnation != target.incarnation;
  if (is_gone && !target.dropped) {
    if (!std::exchange(target.failed, true)) {
      server_event(process, PeerFailed{Role::server, target.server, "connection reset"});
    }
    return later(Milliseconds(30));
  }
  process.pass_queue.pop_front();
  --process.pass_left;
  if (target.dropped) return later(Milliseconds(1));
  const Stamp stamp = memories_[process.memory].parts[trainer];
  at_process(process, mostly_between(1, 40), [=, this, &process, put = target, part = trainer] {
    land(put, part, stamp);
    at(mostly_between(0, 10), [=, this, &process] { signal(process, put, stamp, part); });
    at_process(process, between(1, 15), [=, this, &process] { pass_next(process, token); });
  });
}

void World::end_passing(Process& process, std::uint64_t token, Status status) {
  process.pass_token = 0;
  server_event(process, PassedOn{token, std::move(status), false});
}

}  // namespace weightcast::simulation

#include "plugin/peer_links.h"

#include <fmt/format.h>

#include <utility>

namespace weightcast {

Routes PeerLinks::make(Fabric& fabric, const std::set<RankKey>& needed, const std::vector<PeerCard>& peers,
                       Deadline deadline) {
  let_go(fabric, needed, peers);
  Routes routes;
  for (const PeerCard& peer : peers) {
    if (!needed.contains({peer.role, peer.rank})) continue;
    const PeerId id = link_to(fabric, peer, deadline);
    auto& of_role = peer.role == Role::server ? routes.servers : routes.trainers;
    of_role[peer.rank] = {id, peer.placements};
    const PeerFacts facts = fabric.peer_facts(id);
    routes.paths.push_back(fmt::format("{} over {}", facts.name, facts.path));
  }
  return routes;
}

// Disconnects whom the new plan does not need, who came back as another process or card, or whose link failed.
void PeerLinks::let_go(Fabric& fabric, const std::set<RankKey>& needed, const std::vector<PeerCard>& peers) {
  std::vector<PeerId> stale;
  {
    const std::scoped_lock lock(mutex_);
    for (auto it = known_.begin(); it != known_.end();) {
      bool keep = needed.contains(it->first) && !it->second.failed;
      for (const PeerCard& peer : peers) {
        if (RankKey{peer.role, peer.rank} != it->first) continue;
        keep = keep && peer.incarnation == it->second.incarnation && peer.card == it->second.card;
      }
      if (!keep) stale.push_back(it->second.id);
      it = keep ? std::next(it) : known_.erase(it);
    }
  }
  for (const PeerId id : stale) fabric.disconnect(id);
}

PeerId PeerLinks::link_to(Fabric& fabric, const PeerCard& peer, Deadline deadline) {
  const RankKey name{peer.role, peer.rank};
  {
    const std::scoped_lock lock(mutex_);
    if (const auto known = known_.find(name); known != known_.end()) return known->second.id;
  }
  const auto* card = reinterpret_cast<const std::byte*>(peer.card.data());
  const PeerId id = fabric.connect(to_string(name), {card, peer.card.size()}, deadline);
  const std::scoped_lock lock(mutex_);
  known_[name] = {id, peer.incarnation, peer.card, false};
  return id;
}

void PeerLinks::forget(const RankKey& name) {
  const std::scoped_lock lock(mutex_);
  if (const auto known = known_.find(name); known != known_.end()) known->second.failed = true;
}

std::optional<RankKey> PeerLinks::fail(PeerId id) {
  const std::scoped_lock lock(mutex_);
  for (auto& [name, peer] : known_) {
    if (peer.id != id) continue;
    if (std::exchange(peer.failed, true)) return std::nullopt;
    return name;
  }
  return std::nullopt;
}

std::vector<RankKey> PeerLinks::fail_all() {
  const std::scoped_lock lock(mutex_);
  std::vector<RankKey> names;
  for (auto& [name, peer] : known_) {
    if (!std::exchange(peer.failed, true)) names.push_back(name);
  }
  return names;
}

void PeerLinks::clear() {
  const std::scoped_lock lock(mutex_);
  known_.clear();
}

}  // namespace weightcast

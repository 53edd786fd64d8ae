// A member's connections to the peers that it puts or sends to. They are kept from one plan to the next, as long as
// nothing about the peer has changed and its link has not failed.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "plugin/messages.h"
#include "transport/fabric.h"

namespace weightcast {

// How to reach the peers of a table.
struct Route {
  PeerId peer = 0;
  std::vector<Placement> placements;  // of a server
};
struct Routes {
  std::map<std::uint32_t, Route> servers;   // by rank
  std::map<std::uint32_t, Route> trainers;  // by rank
  std::vector<std::string> paths;           // "server 1 over posix"
};

// Thread-safe, but for make() and clear(): these on the thread that owns the fabric.
class PeerLinks {
 public:
  // Connects to those of `peers` whom `needed` names, and lets go of all others. Throws Error.
  [[nodiscard]] Routes make(Fabric& fabric, const std::set<RankKey>& needed, const std::vector<PeerCard>& peers,
                            Deadline deadline);
  // The peer was disconnected. If it lives, it may be back in the next plan with the same card: it is linked anew then.
  void forget(const RankKey& name);
  // Whose link has failed; nothing where that is known already.
  [[nodiscard]] std::optional<RankKey> fail(PeerId id);
  // All were cut off. Those that were well until now.
  [[nodiscard]] std::vector<RankKey> fail_all();
  // The fabric goes, and with it every link.
  void clear();

 private:
  struct Known {
    PeerId id = 0;
    std::uint64_t incarnation = 0;
    std::vector<std::uint8_t> card;
    bool failed = false;
  };
  void let_go(Fabric& fabric, const std::set<RankKey>& needed, const std::vector<PeerCard>& peers);
  [[nodiscard]] PeerId link_to(Fabric& fabric, const PeerCard& peer, Deadline deadline);

  std::mutex mutex_;
  std::map<RankKey, Known> known_;  // guarded by mutex_
};

}  // namespace weightcast

// Which ranks share a node, and how fast their links are: what the planner balances by and the bound divides by.
#pragma once

#include <cstdint>
#include <vector>

namespace weightcast {

// Rates in GB/s, per direction.
struct RankLinks {
  std::uint32_t node = 0;  // counted over both sides: ranks with one number share a node
  double nic_gbs = 0;      // of all NICs of this rank; 0: unknown
  double nvlink_gbs = 0;   // from and to the other ranks of its node; 0: there is none
  friend bool operator==(const RankLinks&, const RankLinks&) = default;
};

// An empty side is unknown: equal NICs, every rank a node of its own, nothing to relay.
struct Topology {
  std::vector<RankLinks> trainers;  // by rank
  std::vector<RankLinks> servers;
  double host_gbs = 0;  // of the memory of the one host that all ranks share; 0: unknown, or several hosts
  friend bool operator==(const Topology&, const Topology&) = default;
};

}  // namespace weightcast

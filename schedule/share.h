// Who carries what, when several could: loads divided so that the last to finish finishes as early as possible. For the
// .cpp files of this folder.
#pragma once

#include <cstdint>
#include <vector>

namespace weightcast {

// Bytes that any of several ranks may carry, in any parts.
struct Load {
  std::uint64_t bytes = 0;
  std::vector<std::uint32_t> carriers;  // ascending ranks, at least one
};

struct Shares {
  std::vector<std::vector<std::uint64_t>> bytes;  // by load and carrier
  double seconds = 0;                             // until the last carrier is done
};

// The least makespan and, among those that reach it, the one whose less busy ranks are done earliest too: a parametric
// maximum flow, lowered set by set of carriers that cannot do better (Megiddo 1974). `rates` in GB/s, by rank, above 0.
// Exact to one byte per rank.
[[nodiscard]] Shares share(const std::vector<Load>& loads, const std::vector<double>& rates);

}  // namespace weightcast

// What differs between two plans: after a rank left or joined, or between two scenarios.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedule/explain.h"
#include "schedule/plan.h"

namespace weightcast {

struct RankChange {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  std::uint64_t bytes_before = 0;  // that it sends or takes
  std::uint64_t bytes_after = 0;
};

// Pairs of a sender and a server. A pair is kept when it carries the same boxes of the same tensors, by the same relay.
struct PlanChanges {
  std::uint64_t pairs_kept = 0;
  std::uint64_t pairs_changed = 0;
  std::uint64_t pairs_new = 0;
  std::uint64_t pairs_gone = 0;
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  std::uint64_t bytes_moved = 0;  // that pairs carry more than before
  std::vector<RankChange> ranks;  // the largest change first
};

struct PlannedCluster {
  Catalogs catalogs;
  Plan plan;
  Bound bound;
};

// Linear in the steps' tensors and destinations.
[[nodiscard]] PlanChanges changes_between(const PlannedCluster& before, const PlannedCluster& after);
// One screen.
[[nodiscard]] std::string to_text(const PlanChanges& changes, const PlannedCluster& before,
                                  const PlannedCluster& after);
[[nodiscard]] std::string to_json(const PlanChanges& changes, const PlannedCluster& before,
                                  const PlannedCluster& after);

}  // namespace weightcast

// How fast an update could be at best, whatever the plan.
#pragma once

#include <string>

#include "schedule/match.h"
#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

struct Bound {
  double seconds = 0;   // 0: no rate is known
  std::string binding;  // the resource that sets it, e.g. "NICs of servers 0-7, 268.2 GB, replicated tensors relayed"
};

// No schedule can be faster. Without relay: the bytes into each server, and out of the trainers the optimum of the flow
// that chooses among replicas of a source. With relay bytes may be copied on the way, which a flow cannot model; then
// the bound is that of cuts: distinct bytes into each node over the NICs of those of its servers that take them (a flow
// again), into each server over its NICs and NVLink, and out of each group of owners. It lets servers pass on whatever
// they have; a plan passes on between servers that take the same box alone, so between pools that cut tensors
// differently it may need up to as many times the trainers' time as there are such pools. Knows nothing of plans.
[[nodiscard]] Bound lower_bound(const Matches& matches, const Topology& topology, bool relay);

// The time of the plan on ideal links: that of the busiest one. 0: no rate is known.
[[nodiscard]] double makespan_s(const Plan& plan, const Topology& topology);

}  // namespace weightcast

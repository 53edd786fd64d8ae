// The planner: a pure function from what every rank holds to who sends what to whom.
#pragma once

#include <string>
#include <vector>

#include "schedule/match.h"
#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

struct PlanOptions {
  std::uint64_t chunk_bytes = 4ULL << 20;
  std::vector<std::string> unused_tensors = {};  // as match() takes them
  // A tensor that several servers of a node need is received once by the node, spread over its NICs, and passed on over
  // NVLink; servers pass on to other nodes where that lowers the bound.
  bool relay = false;
  std::uint64_t scratch_bytes = 0;     // of a trainer; every piece of a step fits into it; 0: any size does
  std::uint32_t receiver_credits = 4;  // recorded in the plan
};

// Same input, same plan. Throws Error{invalid_argument} where a piece does not fit into scratch memory or the topology
// is of other ranks, and what match() throws.
[[nodiscard]] Plan make_plan(const Matches& matches, const Topology& topology, const PlanOptions& options);
[[nodiscard]] Plan make_plan(const Catalogs& catalogs, const Topology& topology, const PlanOptions& options);
// Where nothing is known of the links.
[[nodiscard]] Plan make_plan(const Catalogs& catalogs, const PlanOptions& options);

}  // namespace weightcast

// The planner: a pure function from what every rank holds to who sends what to whom.
#pragma once

#include <string>
#include <vector>

#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

struct PlanOptions {
  std::uint64_t chunk_bytes = 4ULL << 20;
  // Trainer tensors that no server takes are an error unless a pattern here matches; '*' stands for any run of
  // characters. (Typical: "*.rotary_emb.inv_freq".)
  std::vector<std::string> unused_tensors = {};
  // A tensor that several servers of a node need is received once by the node, spread over its NICs, and passed on over
  // NVLink; servers pass on to other nodes where that lowers the bound.
  bool relay = false;
  std::uint64_t scratch_bytes = 0;     // of a trainer; every piece of a step fits into it; 0: any size does
  std::uint32_t receiver_credits = 4;  // recorded in the plan
};

// Same input, same plan. Throws Error{invalid_argument} naming tensor, ranks and boxes when a server's box is not
// covered exactly, shards overlap without being replicas, shapes differ, or a tensor has no taker.
[[nodiscard]] Plan make_plan(const Catalogs& catalogs, const Topology& topology, const PlanOptions& options);
// Where nothing is known of the links.
[[nodiscard]] Plan make_plan(const Catalogs& catalogs, const PlanOptions& options);

}  // namespace weightcast

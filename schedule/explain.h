// What people read of a plan.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "schedule/bound.h"
#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

// Ranks that send or take alike, e.g. "0-7, 64-71": 11.476 GB.
struct RankClass {
  std::vector<std::uint32_t> ranks;
  std::uint64_t least_bytes = 0;
  std::uint64_t most_bytes = 0;
};
// By size, the largest first; ranks that look the same to a reader (to 1 MB in GB) are one class.
[[nodiscard]] std::vector<RankClass> rank_classes(const std::vector<std::uint64_t>& bytes);

// What is known beside the plan.
struct Context {
  const Catalogs& catalogs;
  const Topology& topology;
  const Bound& bound;  // for plans of this kind, with relay or without
  // What each rank would send and take if every server got everything from trainers.
  const std::vector<std::uint64_t>& direct_trainer_bytes;
  const std::vector<std::uint64_t>& direct_server_bytes;
};

// "bound 0.591 s (NICs of servers 0-7, 268.2 GB, replicated tensors relayed), plan 0.597 s, gap 1.0 %\n"
[[nodiscard]] std::string bound_text(const Plan& plan, const Topology& topology, const Bound& bound);
// The gap as a fraction; nothing when no rate is known.
[[nodiscard]] std::optional<double> gap_of(const Plan& plan, const Topology& topology, const Bound& bound);

// The routing table: one line per trainer-server pair, with bytes, tensors and puts, or one per class of ranks where
// there are too many pairs to read; totals; the bound.
[[nodiscard]] std::string explain(const Plan& plan, const Context& context);
[[nodiscard]] std::string explain_json(const Plan& plan, const Context& context);

}  // namespace weightcast

// What people read of a plan.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedule/plan.h"

namespace weightcast {

// Capacities for the lower bound, in GB/s; 0: unknown, left out of the bound.
struct LinkRates {
  double trainer_out = 0;                   // of each trainer
  double server_in = 0;                     // of each server
  double host = 0;                          // of the one host that all ranks share
  std::vector<double> server_in_each = {};  // by rank, where servers differ: instead of server_in
};

struct Bound {
  double seconds = 0;   // 0: no rate is known
  std::string binding;  // the resource that sets it, e.g. "server 1 in, 93.1 MB"
};
// No schedule can be faster: the bytes through each resource over its rate.
[[nodiscard]] Bound lower_bound(const Plan& plan, const LinkRates& rates);

// Ranks that send or take alike, e.g. "0-7, 64-71": 11.476 GB.
struct RankClass {
  std::vector<std::uint32_t> ranks;
  std::uint64_t least_bytes = 0;
  std::uint64_t most_bytes = 0;
};
// By size, the largest first; ranks that look the same to a reader (to 1 MB in GB) are one class.
[[nodiscard]] std::vector<RankClass> rank_classes(const std::vector<std::uint64_t>& bytes);

// The routing table: one line per trainer-server pair, with bytes, tensors and puts, or one per class of ranks where
// there are too many pairs to read; totals; the bound.
[[nodiscard]] std::string explain(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates);
[[nodiscard]] std::string explain_json(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates);

}  // namespace weightcast

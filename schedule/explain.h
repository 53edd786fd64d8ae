// What people read of a plan.
#pragma once

#include <string>

#include "schedule/plan.h"

namespace weightcast {

// Capacities for the lower bound, in GB/s; 0: unknown, left out of the bound.
struct LinkRates {
  double trainer_out = 0;  // of each trainer
  double server_in = 0;    // of each server
  double host = 0;         // of the one host that all ranks share
};

struct Bound {
  double seconds = 0;   // 0: no rate is known
  std::string binding;  // the resource that sets it, e.g. "server 1 in, 93.1 MB"
};
// No schedule can be faster: the bytes through each resource over its rate.
[[nodiscard]] Bound lower_bound(const Plan& plan, const LinkRates& rates);

// The routing table: one line per trainer-server pair, with bytes, tensors and puts; totals; the bound.
[[nodiscard]] std::string explain(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates);
[[nodiscard]] std::string explain_json(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates);

}  // namespace weightcast

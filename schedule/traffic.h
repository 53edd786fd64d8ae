// What goes from each trainer to each server: the sums of a plan that people read. For the .cpp files of this folder.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/plan.h"

namespace weightcast {

struct PairTraffic {
  std::uint32_t trainer = 0;
  std::uint32_t server = 0;
  std::uint64_t bytes = 0;
  std::uint64_t puts = 0;
  std::uint64_t tensors = 0;
};

struct Traffic {
  std::vector<PairTraffic> pairs;  // that have any, by trainer and server
  std::uint64_t bytes = 0;         // that trainers put
  std::uint64_t puts = 0;
  std::uint64_t tensors = 0;
  std::uint64_t relayed_bytes = 0;  // that servers pass on
  std::uint64_t amax_messages = 0;  // between trainers
  std::uint64_t amax_bytes = 0;
};

// Linear in the destinations of all steps.
[[nodiscard]] Traffic traffic_of(const Plan& plan, const Catalogs& catalogs);

}  // namespace weightcast

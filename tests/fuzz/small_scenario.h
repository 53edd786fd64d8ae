// Which scenarios a fuzz target makes catalogs of: those of others take longer than what they could show.
#pragma once

#include <cstdint>

#include "schedule/scenario.h"

namespace weightcast::fuzz {

[[nodiscard]] inline bool is_small(const Scenario& scenario) {
  std::uint64_t ranks = scenario.trainer_hardware.nodes * scenario.trainer_hardware.gpus_per_node;
  for (const auto& pool : scenario.servers) ranks += pool.hardware.nodes * pool.hardware.gpus_per_node;
  const auto layers = static_cast<std::uint64_t>(scenario.model.num_hidden_layers);
  return ranks * layers * static_cast<std::uint64_t>(scenario.model.experts + 16) < 20'000;
}

}  // namespace weightcast::fuzz

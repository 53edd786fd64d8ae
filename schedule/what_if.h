// A scenario with changes: what if the NICs were slower, a trainer died, a replica joined?
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/scenario.h"

namespace weightcast {

struct WhatIf {
  // "server.nic_gbs=25": a key of every pool's layout or hardware; trainer.KEY, simulation.KEY, model.KEY and
  // recipe alike. Values are JSON, or text. nic_gbps is nic_gbs in Gbit/s.
  std::vector<std::string> settings;
  std::vector<std::string> dropped;  // "trainer:17", "server:3" (with its replica, which cannot serve without it)
  std::uint32_t added_replicas = 0;  // to the first pool, with the nodes that they need
  [[nodiscard]] bool empty() const { return settings.empty() && dropped.empty() && added_replicas == 0; }
};

// Throws Error{invalid_argument} as parse_scenario does, or naming the change that makes no sense.
[[nodiscard]] Scenario parse_scenario(std::string_view json_text, const std::string& origin, const WhatIf& changes);

// Those ranks stay, so that all others keep their numbers, and hold nothing.
void drop_ranks(const WhatIf& changes, Catalogs& catalogs);

}  // namespace weightcast

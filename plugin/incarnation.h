// Who a process says it is when it joins.
#pragma once

#include <cstdint>
#include <string>

#include "plugin/messages.h"
#include "schedule/config.h"

namespace weightcast {

// Random, never 0: tells this process from an earlier one of the same rank.
[[nodiscard]] std::uint64_t new_incarnation();

// Throws Error{invalid_argument} when the catalog is another rank's than the configuration says.
void check_identity(const Catalog& catalog, Role role, const Config& config);

[[nodiscard]] Join make_join(const Config& config, const Catalog& catalog, const std::string& landing);

}  // namespace weightcast

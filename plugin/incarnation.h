// Who a process says it is when it joins.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "plugin/messages.h"
#include "schedule/config.h"

namespace weightcast {

// Random, never 0: tells this process from an earlier one of the same rank.
[[nodiscard]] std::uint64_t new_incarnation();

// The catalog of this process. Throws Error{invalid_argument}: not a catalog, or another rank's than the configuration
// says.
[[nodiscard]] Catalog own_catalog(const Config& config, Role role, std::string_view json);

[[nodiscard]] Join make_join(const Config& config, const Catalog& catalog, const std::string& landing);

}  // namespace weightcast

// CBOR that a peer sent. For the .cpp files of schedule/ and plugin/.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string_view>

namespace weightcast {

// Parses untrusted bytes: nothing nests deeper than `most_depth` and no key stands twice. Throws
// Error{invalid_argument} that names `what`, e.g. "the table of trainer 2".
[[nodiscard]] nlohmann::json parse_cbor(std::span<const std::uint8_t> bytes, int most_depth, std::string_view what);

}  // namespace weightcast

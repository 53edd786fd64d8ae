// CBOR (RFC 8949) that a peer sent. For the .cpp files of schedule/ and plugin/.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string_view>

namespace weightcast {

// Parses untrusted bytes: one item of definite length, nothing in it nests deeper than `most_depth`, keys are text and
// none stands twice in a map, no tags. Text is not checked to be UTF-8. Throws Error{invalid_argument} that names
// `what`, e.g. "the table of trainer 2", and the byte.
[[nodiscard]] nlohmann::json parse_cbor(std::span<const std::uint8_t> bytes, int most_depth, std::string_view what);

}  // namespace weightcast

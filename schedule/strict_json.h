// JSON documents that people write: read strictly, with errors that say where. For the .cpp files of this folder.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

// Throws Error{invalid_argument} naming `origin` and the line and column of a syntax error, or the JSON pointer of
// a key that stands twice in one object (a plain parser would keep the last one silently).
[[nodiscard]] nlohmann::ordered_json parse_strict_json(std::string_view text, const std::string& origin);

// The whole file. Throws Error{unavailable} when it cannot be read.
[[nodiscard]] std::string read_text_file(const std::string& path);

// Of `known`, the one with the fewest edits (insert, delete, replace) to `word`; the first of equals.
[[nodiscard]] std::string_view nearest(std::string_view word, const std::vector<std::string_view>& known);

}  // namespace weightcast

#include "schedule/strict_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <system_error>

#include "transport/base/status.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;

// Watches the parser's events and throws at the first key that its object already has.
class DuplicateKeys {
 public:
  explicit DuplicateKeys(const std::string& origin) : origin_(origin) {}

  bool operator()(int /*depth*/, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start: open_.emplace_back(); break;
      case Json::parse_event_t::object_end: open_.pop_back(); break;
      case Json::parse_event_t::key: enter(parsed.get_ref<const std::string&>()); break;
      default: break;
    }
    return true;
  }

 private:
  struct Object {
    std::set<std::string> keys;
    std::string last;
  };

  void enter(const std::string& key) {
    auto& object = open_.back();
    object.last = key;
    if (object.keys.insert(key).second) return;
    Json::json_pointer pointer;
    for (const auto& outer : open_) pointer /= outer.last;
    throw Error(Code::invalid_argument, fmt::format("{}: {}: this key stands twice", origin_, pointer.to_string()));
  }

  const std::string& origin_;
  std::vector<Object> open_;
};

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

nlohmann::ordered_json parse_strict_json(std::string_view text, const std::string& origin) {
  try {
    return Json::parse(text, DuplicateKeys(origin));
  } catch (const Json::exception& error) {
    const std::string_view what = error.what();
    const auto prefix = what.find("] ");  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    throw Error(Code::invalid_argument,
                fmt::format("{}: {}", origin, prefix == std::string_view::npos ? what : what.substr(prefix + 2)));
  }
}

std::string read_text_file(const std::string& path) {
  const auto fail = [&]() {
    throw Error(Code::unavailable, fmt::format("cannot read {}: {}", path, std::generic_category().message(errno)));
  };
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) fail();
  std::string text;
  std::array<char, 65536> part{};
  while (const auto got = std::fread(part.data(), 1, part.size(), file.get())) text.append(part.data(), got);
  if (std::ferror(file.get()) != 0) fail();
  return text;
}

std::string_view nearest(std::string_view word, const std::vector<std::string_view>& known) {
  std::string_view best;
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  for (const auto candidate : known) {
    const auto edits = edit_distance(word, candidate);
    if (edits < fewest) {
      fewest = edits;
      best = candidate;
    }
  }
  return best;
}

}  // namespace weightcast

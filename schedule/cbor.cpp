#include "schedule/cbor.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/status.h"

namespace weightcast {
namespace {

using CborJson = nlohmann::json;

// The major types of an item, in the upper three bits of its first byte.
enum Major : std::uint8_t { natural = 0, negative = 1, octets = 2, text = 3, array = 4, map = 5, tag = 6, other = 7 };

// Walks over the items before the parser does: that one calls itself for every level, also for levels that it tells
// nobody of (a string of indefinite length inside another), until the stack is full.
class Check {
 public:
  Check(std::span<const std::uint8_t> bytes, int most_depth, std::string_view what)
      : bytes_(bytes), most_depth_(static_cast<std::size_t>(most_depth)), what_(what) {}

  void run() {
    take_item(false);
    while (!open_.empty()) {
      auto& inner = open_.back();
      if (inner.left == 0) {
        open_.pop_back();
        continue;
      }
      --inner.left;
      const bool is_key = inner.is_map && inner.left % 2 == 1;
      take_item(is_key);
    }
    if (at_ != bytes_.size()) fail(at_, "more bytes follow");
  }

 private:
  // An array or map that is not yet at its end.
  struct Open {
    std::uint64_t left = 0;  // items; of a map two per entry
    bool is_map = false;
    std::vector<std::string_view> keys;
  };

  [[noreturn]] void fail(std::size_t at, std::string_view cause) const {
    throw Error(Code::invalid_argument, fmt::format("{} is not valid CBOR: byte {}: {}", what_, at, cause));
  }

  std::uint8_t take_byte() {
    if (at_ == bytes_.size()) fail(at_, "cut short");
    return bytes_[at_++];
  }

  // The number in an item's head.
  std::uint64_t take_argument(std::uint8_t low_bits, std::size_t start) {
    if (low_bits < 24) return low_bits;
    if (low_bits > 27) fail(start, "an item of indefinite length or of a reserved kind");
    std::uint64_t argument = 0;
    for (int i = 0; i < 1 << (low_bits - 24); ++i) argument = argument << 8U | take_byte();
    return argument;
  }

  void take_item(bool is_key) {
    const std::size_t start = at_;
    if (++items_ > kMostItems) fail(start, fmt::format("more than {} values", kMostItems));
    const std::uint8_t head = take_byte();
    const auto major = static_cast<Major>(head >> 5U);
    if (is_key && major != text) fail(start, "a key that is no text");
    const std::uint64_t argument = take_argument(head & 31U, start);
    switch (major) {
      case natural:
      case negative: return;
      case octets:
      case text: take_string(argument, start, is_key); return;
      case array:
      case map: open(argument, major == map, start); return;
      case tag: fail(start, "a tag");
      case other: check_other(head & 31U, start); return;
    }
  }

  void take_string(std::uint64_t length_bytes, std::size_t start, bool is_key) {
    if (length_bytes > bytes_.size() - at_) fail(start, fmt::format("a string of {} bytes, cut short", length_bytes));
    if (is_key) {
      const std::string_view key(reinterpret_cast<const char*>(bytes_.data()) + at_, length_bytes);
      auto& keys = open_.back().keys;
      if (std::find(keys.begin(), keys.end(), key) != keys.end())
        fail(start, fmt::format("the key \"{}\" stands twice", key.substr(0, 100)));
      if (keys.size() == kMostKeys) fail(start, fmt::format("a map of more than {} keys", kMostKeys));
      keys.push_back(key);
    }
    at_ += length_bytes;
  }

  void open(std::uint64_t count, bool is_map, std::size_t start) {
    if (open_.size() == most_depth_) fail(start, fmt::format("nests deeper than {}", most_depth_));
    // Each item takes a byte at least.
    if (count > bytes_.size() - at_) fail(start, fmt::format("an array or map of {} items, cut short", count));
    open_.push_back({is_map ? 2 * count : count, is_map, {}});
  }

  void check_other(std::uint8_t low_bits, std::size_t start) const {
    constexpr std::uint8_t kFalse = 20;
    constexpr std::uint8_t kNull = 22;
    constexpr std::uint8_t kHalf = 25;  // then single and double
    const bool is_known = (low_bits >= kFalse && low_bits <= kNull) || low_bits >= kHalf;
    if (!is_known) fail(start, "a value that is neither number, text, boolean nor null");
  }

  static constexpr std::size_t kMostItems = 1U << 24U;  // a parsed one takes 16 bytes and more
  static constexpr std::size_t kMostKeys = 64;          // so that the search for a second one stays short

  const std::span<const std::uint8_t> bytes_;
  const std::size_t most_depth_;
  const std::string_view what_;
  std::size_t at_ = 0;
  std::size_t items_ = 0;
  std::vector<Open> open_;
};

}  // namespace

CborJson parse_cbor(std::span<const std::uint8_t> bytes, int most_depth, std::string_view what) {
  Check(bytes, most_depth, what).run();
  try {
    return CborJson::from_cbor(bytes.begin(), bytes.end());
  } catch (const CborJson::exception& error) {
    throw Error(Code::invalid_argument, fmt::format("{} is not valid CBOR: {}", what, error.what()));
  }
}

}  // namespace weightcast

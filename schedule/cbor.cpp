#include "schedule/cbor.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "transport/base/status.h"

namespace weightcast {
namespace {

using Json = nlohmann::json;

// The parser calls itself for every level, so depth is watched in a first pass that stops it.
class Inspector : public nlohmann::json_sax<Json> {
 public:
  explicit Inspector(int most_depth) : most_depth_(most_depth) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& key) override {
    if (keys_.back().insert(key).second) return true;
    return refuse(fmt::format("the key \"{}\" stands twice", key.substr(0, 100)));
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    const std::string_view cause = error.what();
    const auto prefix = cause.find("] ");
    return refuse(
        fmt::format("byte {}: {}", position, cause.substr(prefix == std::string_view::npos ? 0 : prefix + 2)));
  }

  [[nodiscard]] const std::string& cause() const { return cause_; }

 private:
  bool open() {
    keys_.emplace_back();
    return static_cast<int>(keys_.size()) <= most_depth_ || refuse(fmt::format("nests deeper than {}", most_depth_));
  }
  bool close() {
    keys_.pop_back();
    return true;
  }
  bool refuse(std::string cause) {
    if (cause_.empty()) cause_ = std::move(cause);
    return false;
  }

  const int most_depth_;
  std::vector<std::set<std::string>> keys_;  // of every open object (or array)
  std::string cause_;
};

}  // namespace

Json parse_cbor(std::span<const std::uint8_t> bytes, int most_depth, std::string_view what) {
  Inspector inspector(most_depth);
  if (!Json::sax_parse(bytes.begin(), bytes.end(), &inspector, Json::input_format_t::cbor)) {
    throw Error(Code::invalid_argument, fmt::format("{} is not valid CBOR: {}", what, inspector.cause()));
  }
  return Json::from_cbor(bytes.begin(), bytes.end());
}

}  // namespace weightcast

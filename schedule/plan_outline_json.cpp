// The outline of a saved plan, read back; see FORMATS.md.
#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "schedule/place.h"
#include "schedule/plan_changes.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using std::uint32_t;
using std::uint64_t;

constexpr std::string_view kFormat = "weightcast.plan/2";
constexpr std::size_t kMostRanks = 1 << 20;
constexpr std::size_t kMostPairs = 1 << 26;

uint32_t rank_of(const Place& place) {
  return static_cast<uint32_t>(place.integer(0, static_cast<std::int64_t>(kMostRanks) - 1));
}

uint64_t content_of(const Place& place) {
  constexpr std::size_t kDigits = 16;
  const auto& text = place.text(kDigits);
  uint64_t content = 0;
  const auto* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, content, 16);
  if (text.size() != kDigits || read.ec != std::errc{} || read.ptr != end) place.fail("must be 16 hex digits");
  return content;
}

std::vector<uint64_t> bytes_of(const Place& place) {
  std::vector<uint64_t> bytes;
  const auto ranks = place.size_of_array(kMostRanks);
  bytes.reserve(ranks);
  for (std::size_t rank = 0; rank < ranks; ++rank) bytes.push_back(place.at(rank).count());
  return bytes;
}

PlanOutline::Pair pair_of(const Place& place) {
  place.require_keys({"trainer", "relay", "server", "bytes", "content"});
  PlanOutline::Pair pair{rank_of(place.at("trainer")),
                         {},
                         rank_of(place.at("server")),
                         place.at("bytes").count(),
                         content_of(place.at("content"))};
  const auto relay = place.at("relay");
  if (!relay.value().is_null()) pair.relay = rank_of(relay);
  return pair;
}

}  // namespace

bool is_saved_plan(std::string_view json_text) {
  if (json_text.find(kFormat) == std::string_view::npos) return false;  // others may be large: not parsed for this
  const auto document = nlohmann::json::parse(json_text, nullptr, false);
  return document.is_object() && document.value("format", nlohmann::json()) == kFormat;
}

PlanOutline parse_outline(std::string_view json_text, const std::string& origin) {
  const auto document = parse_strict_json(json_text, origin);
  const Place root(document, origin);
  root.require_keys({"format", "catalogs_digest", "chunk_bytes", "receiver_credits", "trainer_bytes", "server_bytes",
                     "server_loads", "columns", "steps", "scale_steps", "amax", "pairs", "bound"});
  const auto format = root.at("format");
  if (format.text(64) != kFormat) format.fail(fmt::format("is not {}", kFormat));
  PlanOutline outline;
  outline.trainer_bytes = bytes_of(root.at("trainer_bytes"));
  outline.server_bytes = bytes_of(root.at("server_bytes"));
  const auto pairs = root.at("pairs");
  const auto count = pairs.size_of_array(kMostPairs);
  outline.pairs.reserve(count);
  for (std::size_t i = 0; i < count; ++i) outline.pairs.push_back(pair_of(pairs.at(i)));
  const auto bound = root.at("bound");
  if (bound.value().is_null()) return outline;
  bound.require_keys({"seconds", "set_by", "makespan_s"});
  constexpr std::size_t kMostText = 1024;
  outline.bound = {bound.at("seconds").positive_number(), bound.at("set_by").text(kMostText)};
  outline.makespan_s = bound.at("makespan_s").positive_number();
  return outline;
}

}  // namespace weightcast

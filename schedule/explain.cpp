#include "schedule/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule/proof_geometry.h"

namespace weightcast {
namespace {

using std::uint32_t;
using std::uint64_t;

struct Traffic {
  uint64_t bytes = 0;
  uint64_t puts = 0;
  std::set<std::string_view> tensors;
};

struct Table {
  std::map<std::pair<uint32_t, uint32_t>, Traffic> pairs;  // trainer, server
  uint64_t bytes = 0;
  uint64_t puts = 0;
  std::set<std::string_view> tensors;
  uint64_t amax_messages = 0;
  uint64_t amax_bytes = 0;

  void add(uint32_t trainer, uint32_t server, std::string_view tensor, uint64_t more_bytes, uint64_t more_puts) {
    auto& pair = pairs[{trainer, server}];
    for (auto* traffic : {&pair.bytes, &bytes}) *traffic += more_bytes;
    for (auto* traffic : {&pair.puts, &puts}) *traffic += more_puts;
    pair.tensors.insert(tensor);
    tensors.insert(tensor);
  }
};

Table table_of(const Plan& plan, const Catalogs& catalogs) {
  Table table;
  const auto entry_at = [&](const Destination& to) -> const Entry& {
    return catalogs.servers[to.server].entries[to.entry];
  };
  for (const auto& step : plan.steps) {
    const auto size = element_bytes(step.recipe);
    const auto chunks = chunks_of(step, plan.chunk_bytes);
    for (const auto& to : step.destinations) {
      uint64_t puts = 0;
      for (const auto& chunk : chunks) puts += proof::count_runs(entry_at(to), chunk, size);
      table.add(step.trainer, to.server, entry_at(to).tensor, static_cast<uint64_t>(elements(step.box)) * size, puts);
    }
  }
  for (const auto& step : plan.scale_steps) {
    for (const auto& to : step.destinations) {
      table.add(step.trainer, to.server, entry_at(to).tensor,
                static_cast<uint64_t>(elements(step.blocks)) * sizeof(float),
                proof::count_runs(entry_at(to), step.blocks, sizeof(float)));
    }
  }
  for (const auto& exchange : plan.amax) {
    if (exchange.from == exchange.to) continue;
    ++table.amax_messages;
    for (const auto& run : exchange.runs) {
      table.amax_bytes += static_cast<uint64_t>(elements(run.blocks)) * sizeof(float);
    }
  }
  return table;
}

std::size_t replicas_of(const Catalogs& catalogs) {
  std::set<uint32_t> replicas;
  for (const auto& server : catalogs.servers) replicas.insert(server.replica);
  return replicas.size();
}

std::string counted(std::size_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

// Decimal units: "17.3 MB". The limits are where rounding would give 1000.0 of the smaller unit.
std::string size_text(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 999'950'000) return fmt::format("{:.2f} GB", value / 1e9);
  if (bytes >= 999'950) return fmt::format("{:.1f} MB", value / 1e6);
  if (bytes >= 1'000) return fmt::format("{:.1f} kB", value / 1e3);
  return fmt::format("{} B", bytes);
}

// "trainers send 1.2 MB (trainer 3) to 4.5 MB (trainer 0)"
std::string spread(std::string_view role, std::string_view does, const std::vector<uint64_t>& bytes) {
  if (bytes.empty()) return "";
  const auto [least, most] = std::minmax_element(bytes.begin(), bytes.end());
  const auto rank = [&](auto at) { return std::distance(bytes.begin(), at); };
  if (*least == *most) return fmt::format("each {} {} {}\n", role, does, size_text(*most));
  return fmt::format("each {} {} {} ({} {}) to {} ({} {})\n", role, does, size_text(*least), role, rank(least),
                     size_text(*most), role, rank(most));
}

std::string bound_text(const Bound& bound) {
  if (bound.seconds <= 0) return "bound: unknown, because no rate is given\n";
  return fmt::format("bound: no less than {:.2f} ms, set by {}\n", bound.seconds * 1e3, bound.binding);
}

}  // namespace

Bound lower_bound(const Plan& plan, const LinkRates& rates) {
  Bound bound;
  const auto consider = [&](const std::string& resource, uint64_t bytes, double gigabytes_per_second) {
    if (gigabytes_per_second <= 0) return;
    const double seconds = static_cast<double>(bytes) / (gigabytes_per_second * 1e9);
    if (seconds > bound.seconds) bound = {seconds, fmt::format("{}, {}", resource, size_text(bytes))};
  };
  uint64_t total = 0;
  for (std::size_t rank = 0; rank < plan.server_bytes.size(); ++rank) {
    consider(fmt::format("server {} in", rank), plan.server_bytes[rank], rates.server_in);
    total += plan.server_bytes[rank];
  }
  for (std::size_t rank = 0; rank < plan.trainer_bytes.size(); ++rank) {
    consider(fmt::format("trainer {} out", rank), plan.trainer_bytes[rank], rates.trainer_out);
  }
  consider("host", total, rates.host);
  return bound;
}

std::string explain(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates) {
  const auto table = table_of(plan, catalogs);
  auto text = fmt::format("{} to {} in {}: {} in {}\n\n", counted(catalogs.trainers.size(), "trainer"),
                          counted(catalogs.servers.size(), "server"), counted(replicas_of(catalogs), "replica"),
                          size_text(table.bytes), counted(table.tensors.size(), "tensor"));
  constexpr auto kRow = "{:>7}  {:>6}  {:>7}  {:>10}  {:>8}  {:>9}\n";
  const auto row = [&](auto... cells) { text += fmt::format(fmt::runtime(kRow), cells...); };
  row("trainer", "server", "replica", "bytes", "tensors", "puts");
  for (const auto& [pair, traffic] : table.pairs) {
    row(pair.first, pair.second, catalogs.servers[pair.second].replica, size_text(traffic.bytes),
        traffic.tensors.size(), traffic.puts);
  }
  row("all", "all", "all", size_text(table.bytes), table.tensors.size(), table.puts);
  text += "\n" + spread("trainer", "sends", plan.trainer_bytes) + spread("server", "takes", plan.server_bytes);
  if (table.amax_messages > 0) {
    text += fmt::format("between trainers first: {} of block maxima, {}\n", counted(table.amax_messages, "message"),
                        size_text(table.amax_bytes));
  }
  return text + bound_text(lower_bound(plan, rates));
}

std::string explain_json(const Plan& plan, const Catalogs& catalogs, const LinkRates& rates) {
  using Json = nlohmann::ordered_json;
  const auto table = table_of(plan, catalogs);
  auto pairs = Json::array();
  for (const auto& [pair, traffic] : table.pairs) {
    pairs.push_back({{"trainer", pair.first},
                     {"server", pair.second},
                     {"replica", catalogs.servers[pair.second].replica},
                     {"bytes", traffic.bytes},
                     {"tensors", traffic.tensors.size()},
                     {"puts", traffic.puts}});
  }
  const auto bound = lower_bound(plan, rates);
  const Json document = {
      {"trainers", catalogs.trainers.size()},
      {"servers", catalogs.servers.size()},
      {"replicas", replicas_of(catalogs)},
      {"bytes", table.bytes},
      {"tensors", table.tensors.size()},
      {"puts", table.puts},
      {"pairs", pairs},
      {"trainer_bytes", plan.trainer_bytes},
      {"server_bytes", plan.server_bytes},
      {"amax", {{"messages", table.amax_messages}, {"bytes", table.amax_bytes}}},
      {"bound", bound.seconds > 0 ? Json{{"seconds", bound.seconds}, {"set_by", bound.binding}} : Json(nullptr)}};
  return document.dump(2);
}

}  // namespace weightcast

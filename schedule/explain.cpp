#include "schedule/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule/traffic.h"
#include "schedule/units_text.h"

namespace weightcast {
namespace {

using std::uint32_t;
using std::uint64_t;

std::size_t replicas_of(const Catalogs& catalogs) {
  std::set<uint32_t> replicas;
  for (const auto& server : catalogs.servers) replicas.insert(server.replica);
  return replicas.size();
}

std::string counted(std::size_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
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

// "11.476 GB", as published tables have it.
std::string fine_size_text(uint64_t bytes) {
  return bytes >= 999'999'500 ? fmt::format("{:.3f} GB", static_cast<double>(bytes) / 1e9) : size_text(bytes);
}

// One line per class: "  16 of 128  11.476 GB each  11,476,111,360 bytes  trainers 0-7, 64-71"
std::string classes_text(std::string_view role, std::string_view do_what, const std::vector<uint64_t>& bytes) {
  const auto total = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
  auto text = fmt::format("{} {} {}, {} bytes in all\n", counted(bytes.size(), role), do_what, fine_size_text(total),
                          fmt::group_digits(total));
  for (const auto& same : rank_classes(bytes)) {
    text += fmt::format("{:>6} x {:>11}  {}s {}\n", same.ranks.size(), fine_size_text(same.most_bytes), role,
                        ranks_text(same.ranks));
    if (same.least_bytes == same.most_bytes) {
      text += fmt::format("{:>21}{} bytes each\n", "", fmt::group_digits(same.most_bytes));
    } else {
      text += fmt::format("{:>21}{} to {} bytes\n", "", fmt::group_digits(same.least_bytes),
                          fmt::group_digits(same.most_bytes));
    }
  }
  return text;
}

uint64_t sum_of(const Plan& plan, uint64_t ServerLoad::*link) {
  uint64_t sum = 0;
  for (const auto& load : plan.server_loads) sum += load.*link;
  return sum;
}

uint64_t most_of(const Plan& plan, uint64_t ServerLoad::*link) {
  uint64_t most = 0;
  for (const auto& load : plan.server_loads) most = std::max(most, load.*link);
  return most;
}

std::string pairs_text(const Traffic& table, const Catalogs& catalogs) {
  std::string text;
  constexpr auto kRow = "{:>7}  {:>6}  {:>7}  {:>10}  {:>8}  {:>9}\n";
  const auto row = [&](auto... cells) { text += fmt::format(fmt::runtime(kRow), cells...); };
  row("trainer", "server", "replica", "bytes", "tensors", "puts");
  for (const auto& pair : table.pairs) {
    row(pair.trainer, pair.server, catalogs.servers[pair.server].replica, size_text(pair.bytes), pair.tensors,
        pair.puts);
  }
  row("all", "all", "all", size_text(table.bytes), table.tensors, table.puts);
  return text;
}

}  // namespace

std::vector<RankClass> rank_classes(const std::vector<uint64_t>& bytes) {
  std::map<uint64_t, RankClass, std::greater<>> classes;  // by the number that a reader sees
  for (std::size_t rank = 0; rank < bytes.size(); ++rank) {
    const auto seen = bytes[rank] >= 999'999'500 ? (bytes[rank] + 500'000) / 1'000'000 * 1'000'000 : bytes[rank];
    auto& same = classes[seen];
    same.least_bytes = same.ranks.empty() ? bytes[rank] : std::min(same.least_bytes, bytes[rank]);
    same.most_bytes = std::max(same.most_bytes, bytes[rank]);
    same.ranks.push_back(static_cast<uint32_t>(rank));
  }
  std::vector<RankClass> result;
  result.reserve(classes.size());
  for (auto& [seen, same] : classes) result.push_back(std::move(same));
  return result;
}

std::optional<double> gap_of(const Plan& plan, const Topology& topology, const Bound& bound) {
  if (bound.seconds <= 0) return std::nullopt;
  return makespan_s(plan, topology) / bound.seconds - 1;
}

std::string bound_text(const Plan& plan, const Topology& topology, const Bound& bound) {
  const auto gap = gap_of(plan, topology, bound);
  if (!gap) return "bound unknown, because no rate is given\n";
  const auto time = [](double seconds) {
    return seconds < 0.1 ? fmt::format("{:.3f} ms", seconds * 1e3) : fmt::format("{:.3f} s", seconds);
  };
  return fmt::format("bound {} ({}), plan {}, gap {:.1f} %\n", time(bound.seconds), bound.binding,
                     time(makespan_s(plan, topology)), *gap * 100);
}

std::string explain(const Plan& plan, const Context& context) {
  const auto& catalogs = context.catalogs;
  const auto table = traffic_of(plan, catalogs);
  auto text = fmt::format("{} to {} in {}: {} in {}\n\n", counted(catalogs.trainers.size(), "trainer"),
                          counted(catalogs.servers.size(), "server"), counted(replicas_of(catalogs), "replica"),
                          size_text(table.bytes), counted(table.tensors, "tensor"));
  constexpr std::size_t kMostPairs = 256;
  if (table.pairs.size() <= kMostPairs) {
    text += pairs_text(table, catalogs) + "\n" + spread("trainer", "sends", plan.trainer_bytes) +
            spread("server", "takes", plan.server_bytes);
  } else {
    text += classes_text("trainer", "send", context.direct_trainer_bytes) + "\n" +
            classes_text("server", "take", context.direct_server_bytes) + "\n" +
            fmt::format("{} pairs of a trainer and a server, {} puts\n", table.pairs.size(), table.puts);
  }
  if (table.amax_messages > 0) {
    text += fmt::format("between trainers first: {} of block maxima, {}\n", counted(table.amax_messages, "message"),
                        size_text(table.amax_bytes));
  }
  if (table.relayed_bytes > 0) {
    text += fmt::format(
        "with relay a trainer sends at most {}, a server's NICs take at most {}\n"
        "servers pass {} on: {} over NVLink, {} to other nodes\n",
        size_text(*std::max_element(plan.trainer_bytes.begin(), plan.trainer_bytes.end())),
        size_text(most_of(plan, &ServerLoad::nic_in)), size_text(table.relayed_bytes),
        size_text(sum_of(plan, &ServerLoad::nvlink_in)), size_text(sum_of(plan, &ServerLoad::nic_out)));
  }
  return text + bound_text(plan, context.topology, context.bound);
}

std::string explain_json(const Plan& plan, const Context& context) {
  const auto& catalogs = context.catalogs;
  using Json = nlohmann::ordered_json;
  const auto table = traffic_of(plan, catalogs);
  auto pairs = Json::array();
  for (const auto& pair : table.pairs) {
    pairs.push_back({{"trainer", pair.trainer},
                     {"server", pair.server},
                     {"replica", catalogs.servers[pair.server].replica},
                     {"bytes", pair.bytes},
                     {"tensors", pair.tensors},
                     {"puts", pair.puts}});
  }
  const auto& bound = context.bound;
  const auto gap = gap_of(plan, context.topology, bound);
  auto loads = Json::array();
  for (const auto& load : plan.server_loads) {
    loads.push_back({{"nic_in", load.nic_in},
                     {"nic_out", load.nic_out},
                     {"nvlink_in", load.nvlink_in},
                     {"nvlink_out", load.nvlink_out}});
  }
  const Json document = {
      {"trainers", catalogs.trainers.size()},
      {"servers", catalogs.servers.size()},
      {"replicas", replicas_of(catalogs)},
      {"bytes", table.bytes},
      {"tensors", table.tensors},
      {"puts", table.puts},
      {"pairs", pairs},
      {"trainer_bytes", plan.trainer_bytes},
      {"server_bytes", plan.server_bytes},
      {"server_loads", loads},
      {"relayed_bytes", table.relayed_bytes},
      {"direct", {{"trainer_bytes", context.direct_trainer_bytes}, {"server_bytes", context.direct_server_bytes}}},
      {"amax", {{"messages", table.amax_messages}, {"bytes", table.amax_bytes}}},
      {"bound", bound.seconds > 0 ? Json{{"seconds", bound.seconds}, {"set_by", bound.binding}} : Json(nullptr)},
      {"bound_s", bound.seconds > 0 ? Json(bound.seconds) : Json(nullptr)},
      {"makespan_s", gap ? Json(makespan_s(plan, context.topology)) : Json(nullptr)},
      {"gap", gap ? Json(*gap) : Json(nullptr)},
      {"binding", bound.seconds > 0 ? Json(bound.binding) : Json(nullptr)}};
  return document.dump(2);
}

}  // namespace weightcast

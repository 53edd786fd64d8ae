#include "schedule/plan_changes.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "schedule/blocks.h"
#include "schedule/fingerprint.h"
#include "schedule/units_text.h"

namespace weightcast {
namespace {

using std::uint32_t;
using std::uint64_t;

// Who sends, by which relay if any (none comes first), to whom.
using PairKey = std::tuple<uint32_t, std::optional<uint32_t>, uint32_t>;

PairKey key_of(const PlanOutline::Pair& pair) { return {pair.trainer, pair.relay, pair.server}; }

// What all tensors of a step have in common.
Fingerprint print_of(const Box& box, uint64_t kind) {
  Fingerprint print;
  print.add(kind);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    print.add(static_cast<uint64_t>(box.offset[axis]));
    print.add(static_cast<uint64_t>(box.extent[axis]));
  }
  return print;
}

void add_ranks(Role role, const std::vector<uint64_t>& before, const std::vector<uint64_t>& after,
               std::vector<RankChange>& ranks) {
  for (std::size_t rank = 0; rank < std::max(before.size(), after.size()); ++rank) {
    const RankChange change{role, static_cast<uint32_t>(rank), rank < before.size() ? before[rank] : 0,
                            rank < after.size() ? after[rank] : 0};
    if (change.bytes_before != change.bytes_after) ranks.push_back(change);
  }
}

uint64_t size_of(const RankChange& change) {
  return std::max(change.bytes_before, change.bytes_after) - std::min(change.bytes_before, change.bytes_after);
}

std::string bound_text(const PlanOutline& of) {
  if (of.bound.seconds <= 0) return "no rate is known";
  return fmt::format("{} ({}), plan {}, gap {:.1f} %", time_text(of.bound.seconds), of.bound.binding,
                     time_text(of.makespan_s), 100 * (of.makespan_s / of.bound.seconds - 1));
}

}  // namespace

PlanOutline outline_of(const Plan& plan, const Catalogs& catalogs, const Topology& topology, const Bound& bound) {
  std::map<PairKey, PlanOutline::Pair> pairs;
  const auto add = [&](const auto& step, const Box& box, uint64_t bytes_of_one, uint64_t kind) {
    const auto print = print_of(box, kind);
    uint64_t content = 0;
    const auto& entries = catalogs.trainers[step.trainer].entries;
    const auto& column = plan.columns[step.column];
    for (uint32_t i = step.first; i < step.first + step.count; ++i) {
      auto one = print;
      one.add(entries[column[i]].tensor.print());
      content += one.value();
    }
    const auto bytes = step.count * bytes_of_one;
    for (const auto& to : step.destinations) {
      auto& pair =
          pairs.try_emplace({step.trainer, to.relay, to.server}, PlanOutline::Pair{step.trainer, to.relay, to.server})
              .first->second;
      pair.bytes += bytes;
      pair.content += content;
    }
  };
  for (const auto& step : plan.steps) {
    add(step, step.box, value_bytes(step.box, step.recipe), static_cast<uint64_t>(step.recipe));
  }
  constexpr uint64_t kScales = 1 << 20;
  for (const auto& step : plan.scale_steps) {
    add(step, step.blocks, static_cast<uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe),
        kScales + static_cast<uint64_t>(step.recipe));
  }
  PlanOutline outline{{}, plan.trainer_bytes, plan.server_bytes, bound, makespan_s(plan, topology)};
  outline.pairs.reserve(pairs.size());
  for (const auto& [key, pair] : pairs) outline.pairs.push_back(pair);
  return outline;
}

std::string to_json(const Plan& plan, const PlanOutline& outline) {
  using Json = nlohmann::ordered_json;
  auto text = to_json(plan);
  text.resize(text.rfind("\n}"));
  text += ",\n  \"pairs\": [";
  const char* separator = "\n    ";
  for (const auto& pair : outline.pairs) {
    text += separator + Json{{"trainer", pair.trainer},
                             {"relay", pair.relay ? Json(*pair.relay) : Json(nullptr)},
                             {"server", pair.server},
                             {"bytes", pair.bytes},
                             {"content", fmt::format("{:016x}", pair.content)}}
                            .dump();
    separator = ",\n    ";
  }
  const Json bound = outline.bound.seconds > 0 ? Json{{"seconds", outline.bound.seconds},
                                                      {"set_by", outline.bound.binding},
                                                      {"makespan_s", outline.makespan_s}}
                                               : Json(nullptr);
  return text + "\n  ],\n  \"bound\": " + bound.dump() + "\n}\n";
}

PlanChanges changes_between(const PlanOutline& before, const PlanOutline& after) {
  std::map<PairKey, const PlanOutline::Pair*> is;
  for (const auto& pair : after.pairs) is[key_of(pair)] = &pair;
  PlanChanges changes;
  for (const auto& was : before.pairs) {
    changes.bytes_before += was.bytes;
    const auto found = is.find(key_of(was));
    if (found == is.end()) {
      ++changes.pairs_gone;
      continue;
    }
    const auto& now = *found->second;
    ++(now.content == was.content ? changes.pairs_kept : changes.pairs_changed);
    changes.bytes_moved += std::max(now.bytes, was.bytes) - was.bytes;
    changes.bytes_after += now.bytes;
    is.erase(found);
  }
  changes.pairs_new = is.size();
  for (const auto& [key, now] : is) {
    changes.bytes_moved += now->bytes;
    changes.bytes_after += now->bytes;
  }
  add_ranks(Role::trainer, before.trainer_bytes, after.trainer_bytes, changes.ranks);
  add_ranks(Role::server, before.server_bytes, after.server_bytes, changes.ranks);
  std::stable_sort(changes.ranks.begin(), changes.ranks.end(),
                   [](const RankChange& a, const RankChange& b) { return size_of(a) > size_of(b); });
  return changes;
}

std::string to_text(const PlanChanges& changes, const PlanOutline& before, const PlanOutline& after) {
  constexpr std::size_t kMostRanks = 12;
  auto text = fmt::format("pairs of a sender and a server: {} as before, {} changed, {} new, {} gone\n",
                          changes.pairs_kept, changes.pairs_changed, changes.pairs_new, changes.pairs_gone);
  text += fmt::format("bytes: {} before, {} after; {} go another way\n", size_text(changes.bytes_before),
                      size_text(changes.bytes_after), size_text(changes.bytes_moved));
  if (changes.ranks.empty()) {
    text += "every rank sends and takes as many bytes as before\n";
  } else {
    text += fmt::format("\n{} ranks send or take more or fewer bytes\n", changes.ranks.size());
  }
  for (std::size_t i = 0; i < std::min(kMostRanks, changes.ranks.size()); ++i) {
    const auto& change = changes.ranks[i];
    text += fmt::format("  {:<14}{:>10} -> {:>10}\n", fmt::format("{} {}", to_string(change.role), change.rank),
                        size_text(change.bytes_before), size_text(change.bytes_after));
  }
  if (changes.ranks.size() > kMostRanks) text += fmt::format("  and {} more\n", changes.ranks.size() - kMostRanks);
  return text + fmt::format("\nbound before: {}\nbound after:  {}\n", bound_text(before), bound_text(after));
}

std::string to_json(const PlanChanges& changes, const PlanOutline& before, const PlanOutline& after) {
  using Json = nlohmann::ordered_json;
  auto ranks = Json::array();
  for (const auto& change : changes.ranks) {
    ranks.push_back({{"role", to_string(change.role)},
                     {"rank", change.rank},
                     {"bytes_before", change.bytes_before},
                     {"bytes_after", change.bytes_after}});
  }
  const auto bound = [](const PlanOutline& of) {
    if (of.bound.seconds <= 0) return Json(nullptr);
    return Json{{"seconds", of.bound.seconds}, {"set_by", of.bound.binding}, {"makespan_s", of.makespan_s}};
  };
  const Json document = {{"pairs",
                          {{"kept", changes.pairs_kept},
                           {"changed", changes.pairs_changed},
                           {"new", changes.pairs_new},
                           {"gone", changes.pairs_gone}}},
                         {"bytes_before", changes.bytes_before},
                         {"bytes_after", changes.bytes_after},
                         {"bytes_moved", changes.bytes_moved},
                         {"ranks", ranks},
                         {"bound_before", bound(before)},
                         {"bound_after", bound(after)}};
  return document.dump(2);
}

}  // namespace weightcast

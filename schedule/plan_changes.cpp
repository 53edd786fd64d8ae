#include "schedule/plan_changes.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <tuple>
#include <utility>

#include "schedule/fingerprint.h"
#include "schedule/units_text.h"

namespace weightcast {
namespace {

using std::uint32_t;
using std::uint64_t;

constexpr uint32_t kTrainer = UINT32_MAX;  // the sender is a trainer, not a relay

// Who sends, by which relay if any, to whom.
using PairKey = std::tuple<uint32_t, uint32_t, uint32_t>;
struct PairSum {
  uint64_t bytes = 0;
  uint64_t content = 0;  // adds up over tensors and boxes, so that order and grouping of steps do not count
};

uint64_t number_of(std::string_view tensor, const Box& box, uint64_t kind) {
  Fingerprint print;
  print.add(tensor);
  print.add(kind);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    print.add(static_cast<uint64_t>(box.offset[axis]));
    print.add(static_cast<uint64_t>(box.extent[axis]));
  }
  return print.value();
}

std::map<PairKey, PairSum> pairs_of(const PlannedCluster& cluster) {
  std::map<PairKey, PairSum> pairs;
  const auto add = [&](const auto& step, const Box& box, uint64_t element_bytes, uint64_t kind) {
    uint64_t content = 0;
    const auto& entries = cluster.catalogs.trainers[step.trainer].entries;
    const auto& column = cluster.plan.columns[step.column];
    for (uint32_t i = step.first; i < step.first + step.count; ++i) {
      content += number_of(entries[column[i]].tensor, box, kind);
    }
    const auto bytes = step.count * static_cast<uint64_t>(elements(box)) * element_bytes;
    for (const auto& to : step.destinations) {
      auto& sum = pairs[{step.trainer, to.relay.value_or(kTrainer), to.server}];
      sum.bytes += bytes;
      sum.content += content;
    }
  };
  for (const auto& step : cluster.plan.steps) {
    add(step, step.box, element_bytes(step.recipe), static_cast<uint64_t>(step.recipe));
  }
  constexpr uint64_t kScales = 1 << 20;
  for (const auto& step : cluster.plan.scale_steps) add(step, step.blocks, sizeof(float), kScales);
  return pairs;
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

std::string bound_text(const Bound& bound) {
  return bound.seconds > 0 ? fmt::format("{} ({})", time_text(bound.seconds), bound.binding) : "no rate is known";
}

}  // namespace

PlanChanges changes_between(const PlannedCluster& before, const PlannedCluster& after) {
  const auto was = pairs_of(before);
  auto is = pairs_of(after);
  PlanChanges changes;
  for (const auto& [pair, sum] : was) {
    changes.bytes_before += sum.bytes;
    const auto found = is.find(pair);
    if (found == is.end()) {
      ++changes.pairs_gone;
      continue;
    }
    ++(found->second.content == sum.content ? changes.pairs_kept : changes.pairs_changed);
    changes.bytes_moved += std::max(found->second.bytes, sum.bytes) - sum.bytes;
    changes.bytes_after += found->second.bytes;
    is.erase(found);
  }
  changes.pairs_new = is.size();
  for (const auto& [pair, sum] : is) {
    changes.bytes_moved += sum.bytes;
    changes.bytes_after += sum.bytes;
  }
  add_ranks(Role::trainer, before.plan.trainer_bytes, after.plan.trainer_bytes, changes.ranks);
  add_ranks(Role::server, before.plan.server_bytes, after.plan.server_bytes, changes.ranks);
  std::stable_sort(changes.ranks.begin(), changes.ranks.end(),
                   [](const RankChange& a, const RankChange& b) { return size_of(a) > size_of(b); });
  return changes;
}

std::string to_text(const PlanChanges& changes, const PlannedCluster& before, const PlannedCluster& after) {
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
  return text +
         fmt::format("\nbound before: {}\nbound after:  {}\n", bound_text(before.bound), bound_text(after.bound));
}

std::string to_json(const PlanChanges& changes, const PlannedCluster& before, const PlannedCluster& after) {
  using Json = nlohmann::ordered_json;
  auto ranks = Json::array();
  for (const auto& change : changes.ranks) {
    ranks.push_back({{"role", to_string(change.role)},
                     {"rank", change.rank},
                     {"bytes_before", change.bytes_before},
                     {"bytes_after", change.bytes_after}});
  }
  const auto bound = [](const Bound& of) {
    return of.seconds > 0 ? Json{{"seconds", of.seconds}, {"set_by", of.binding}} : Json(nullptr);
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
                         {"bound_before", bound(before.bound)},
                         {"bound_after", bound(after.bound)}};
  return document.dump(2);
}

}  // namespace weightcast

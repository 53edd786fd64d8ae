#include "schedule/replan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "schedule/blocks.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using Ranks = std::vector<std::uint32_t>;

[[noreturn]] void refuse(const std::string& what) { throw Error(Code::invalid_argument, what + "; make a new plan"); }

bool has_entries(const std::vector<Catalog>& side, std::size_t rank) {
  return rank < side.size() && !side[rank].entries.empty();
}

bool have_one_list(const Catalog& a, const Catalog& b) {
  return a.entries.identity() == b.entries.identity() ||
         (a.entries.size() == b.entries.size() && digest_of(a.entries, a.role) == digest_of(b.entries, b.role));
}

// What has happened to the ranks of one side.
struct Changes {
  Ranks lost;
  Ranks joined;
};

Changes changes_between(const std::vector<Catalog>& before, const std::vector<Catalog>& after) {
  Changes changes;
  for (std::uint32_t rank = 0; rank < std::max(before.size(), after.size()); ++rank) {
    const bool was = has_entries(before, rank);
    const bool is = has_entries(after, rank);
    if (was && is && !have_one_list(before[rank], after[rank])) {
      refuse(fmt::format("{} has other entries than before", name_of(after[rank])));
    }
    if (was && !is) changes.lost.push_back(rank);
    if (!was && is) changes.joined.push_back(rank);
  }
  return changes;
}

// Tensors of a column that one trainer takes over.
struct Stretch {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  std::uint32_t trainer = 0;
  std::uint32_t column = 0;  // of that trainer
};

// Who takes over what a lost trainer cast. Each column is cut into as many stretches as there are heirs, so that steps
// of values and of scales of one tensor stay together.
class Estate {
 public:
  Estate(std::uint32_t lost, const Catalogs& before, const Catalogs& after, std::vector<Column>& columns)
      : lost_(before.trainers[lost]), after_(after), columns_(columns) {
    for (const auto& trainer : after.trainers) {
      if (trainer.entries.empty() || trainer.rank == lost) continue;
      (have_one_list(trainer, lost_) ? twins_ : others_).push_back(trainer.rank);
    }
  }

  const std::vector<Stretch>& of(std::uint32_t column) {
    const auto [found, is_new] = stretches_.try_emplace(column);
    if (is_new) found->second = cut(column, heirs_of(column));
    return found->second;
  }

 private:
  struct Heir {
    std::uint32_t trainer = 0;
    std::uint32_t column = 0;
  };

  std::vector<Heir> heirs_of(std::uint32_t column) {
    std::vector<Heir> heirs;
    for (const auto twin : twins_) heirs.push_back({twin, column});
    if (!heirs.empty()) return heirs;
    for (const auto other : others_) {
      if (const auto same = column_in(other, columns_[column])) heirs.push_back({other, *same});
    }
    if (!heirs.empty()) return heirs;
    const auto& entry = lost_.entries[columns_[column].front()];
    refuse(fmt::format("tensor {}: {} is lost, and nobody else holds {}", entry.tensor, name_of(lost_),
                       to_string(entry.box)));
  }

  // Where another trainer has the same boxes of the same tensors.
  std::optional<std::uint32_t> column_in(std::uint32_t trainer, const Column& column) {
    const auto& entries = after_.trainers[trainer].entries;
    auto& by_name = entries_by_name_[entries.identity()];
    if (by_name.empty()) {
      for (std::uint32_t i = 0; i < entries.size(); ++i) by_name.emplace(entries[i].tensor, i);
    }
    Column same;
    same.reserve(column.size());
    for (const auto index : column) {
      const auto& entry = lost_.entries[index];
      const auto [begin, end] = by_name.equal_range(entry.tensor);
      const auto found =
          std::find_if(begin, end, [&](const auto& one) { return entries[one.second].box == entry.box; });
      if (found == end) return std::nullopt;
      same.push_back(found->second);
    }
    const auto known = std::find(columns_.begin(), columns_.end(), same);
    if (known != columns_.end()) return static_cast<std::uint32_t>(known - columns_.begin());
    columns_.push_back(std::move(same));
    return static_cast<std::uint32_t>(columns_.size() - 1);
  }

  std::vector<Stretch> cut(std::uint32_t column, const std::vector<Heir>& heirs) const {
    const auto tensors = columns_[column].size();
    std::vector<Stretch> stretches;
    for (std::size_t i = 0; i < heirs.size(); ++i) {
      const auto at = [&](std::size_t part) { return static_cast<std::uint32_t>(tensors * part / heirs.size()); };
      const auto& heir = heirs[(i + column) % heirs.size()];  // not always the same one of a few tensors
      if (at(i) < at(i + 1)) stretches.push_back({at(i), at(i + 1), heir.trainer, heir.column});
    }
    return stretches;
  }

  const Catalog& lost_;
  const Catalogs& after_;
  std::vector<Column>& columns_;
  Ranks twins_;
  Ranks others_;
  std::map<std::uint32_t, std::vector<Stretch>> stretches_;  // by column of the lost trainer
  std::unordered_map<const void*, std::unordered_multimap<std::string_view, std::uint32_t>> entries_by_name_;
};

class Replanning {
 public:
  Replanning(Plan plan, const Catalogs& before, const Catalogs& after, const Topology& topology)
      : plan_(std::move(plan)),
        before_(before),
        after_(after),
        topology_(topology),
        trainers_(changes_between(before.trainers, after.trainers)),
        servers_(changes_between(before.servers, after.servers)) {}

  Plan run() {
    for (const auto lost : trainers_.lost) hand_over(lost);
    if (!servers_.joined.empty()) add_servers();
    if (!servers_.lost.empty()) drop_servers();
    count_bytes();
    count_digest();
    return std::move(plan_);
  }

 private:
  // ---- a lost trainer ----

  void hand_over(std::uint32_t lost) {
    Estate estate(lost, before_, after_, plan_.columns);
    plan_.steps = moved(std::move(plan_.steps), lost, estate);
    plan_.scale_steps = moved(std::move(plan_.scale_steps), lost, estate);
    Exchanges exchanges;
    for (auto& exchange : plan_.amax) exchanges[{exchange.from, exchange.to}] = std::move(exchange.runs);
    move_receiving(lost, estate, exchanges);
    move_sending(lost, estate, exchanges);
    plan_.amax.clear();
    for (auto& [pair, runs] : exchanges) {
      if (!runs.empty()) plan_.amax.push_back({pair.first, pair.second, std::move(runs)});
    }
  }

  // Calls visit(first, end, stretch) for what each heir takes over of tensors first to first + count.
  template <class Visit>
  static void divide(const std::vector<Stretch>& stretches, std::uint32_t first, std::uint32_t count,
                     const Visit& visit) {
    for (const auto& stretch : stretches) {
      const auto from = std::max(first, stretch.first);
      const auto end = std::min(first + count, stretch.end);
      if (from < end) visit(from, end, stretch);
    }
  }

  template <class AnyStep>
  static std::vector<AnyStep> moved(std::vector<AnyStep> steps, std::uint32_t lost, Estate& estate) {
    std::vector<AnyStep> result;
    result.reserve(steps.size());
    for (auto& step : steps) {
      if (step.trainer != lost) {
        result.push_back(std::move(step));
        continue;
      }
      divide(estate.of(step.column), step.first, step.count, [&](auto first, auto end, const Stretch& stretch) {
        auto& part = result.emplace_back(step);
        part.trainer = stretch.trainer;
        part.column = stretch.column;
        part.first = first;
        part.count = end - first;
      });
    }
    return result;
  }

  using Exchanges = std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<AmaxRun>>;  // from, to

  [[nodiscard]] const Box& box_of(std::uint32_t trainer, std::uint32_t column) const {
    const auto& catalog = has_entries(after_.trainers, trainer) ? after_.trainers[trainer] : before_.trainers[trainer];
    return catalog.entries[plan_.columns[column].front()].box;
  }

  // An heir needs the maxima that the lost one needed, unless it has been given them for a step of its own.
  void move_receiving(std::uint32_t lost, Estate& estate, Exchanges& exchanges) {
    Exchanges added;
    for (auto& exchange : exchanges) {
      const auto& pair = exchange.first;
      if (pair.second != lost) continue;
      for (const auto& run : std::exchange(exchange.second, {})) {
        const auto& box = box_of(pair.first, run.from_column);
        divide(estate.of(run.to_column), run.first, run.count, [&](auto first, auto end, const Stretch& heir) {
          for (const auto& [from, to] : not_given(exchanges, heir, run, box, first, end)) {
            added[{pair.first, heir.trainer}].push_back(
                {run.from_column, heir.column, from, to - from, run.recipe, run.blocks});
          }
        });
      }
    }
    merge(added, exchanges);
  }

  // The tensors first to end for which nobody sends `heir` the maxima of the wanted blocks of this box.
  [[nodiscard]] std::vector<std::pair<std::uint32_t, std::uint32_t>> not_given(const Exchanges& exchanges,
                                                                               const Stretch& heir,
                                                                               const AmaxRun& wanted, const Box& box,
                                                                               std::uint32_t first,
                                                                               std::uint32_t end) const {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> given;
    for (const auto& [pair, runs] : exchanges) {
      if (pair.second != heir.trainer) continue;
      for (const auto& run : runs) {
        if (run.to_column != heir.column || run.recipe != wanted.recipe || run.blocks != wanted.blocks ||
            box_of(pair.first, run.from_column) != box) {
          continue;
        }
        given.emplace_back(run.first, run.first + run.count);
      }
    }
    std::sort(given.begin(), given.end());
    std::vector<std::pair<std::uint32_t, std::uint32_t>> missing;
    for (const auto& [from, to] : given) {
      if (from > first) missing.emplace_back(first, std::min(from, end));
      first = std::max(first, to);
      if (first >= end) return missing;
    }
    missing.emplace_back(first, end);
    return missing;
  }

  // What the lost one told others, its heirs tell them; whoever holds that part too tells itself.
  void move_sending(std::uint32_t lost, Estate& estate, Exchanges& exchanges) {
    Exchanges added;
    for (auto& [pair, runs] : exchanges) {
      if (pair.first != lost) continue;
      const auto to = pair.second;
      for (const auto& run : std::exchange(runs, {})) {
        const auto& stretches = estate.of(run.from_column);
        const auto own = std::find_if(stretches.begin(), stretches.end(),
                                      [&](const Stretch& stretch) { return stretch.trainer == to; });
        if (own != stretches.end()) {
          added[{to, to}].push_back({own->column, run.to_column, run.first, run.count, run.recipe, run.blocks});
          continue;
        }
        divide(stretches, run.first, run.count, [&](auto first, auto end, const Stretch& heir) {
          added[{heir.trainer, to}].push_back({heir.column, run.to_column, first, end - first, run.recipe, run.blocks});
        });
      }
    }
    merge(added, exchanges);
  }

  static void merge(const Exchanges& added, Exchanges& exchanges) {
    for (const auto& [pair, runs] : added) {
      auto& all = exchanges[pair];
      all.insert(all.end(), runs.begin(), runs.end());
    }
  }

  // ---- servers ----

  template <class Change>
  void for_each_list(const Change& change) {
    for (auto& step : plan_.steps) change(step.destinations);
    for (auto& step : plan_.scale_steps) change(step.destinations);
  }

  [[nodiscard]] bool share_nvlink(std::uint32_t a, std::uint32_t b) const {
    const auto& links = topology_.servers;
    return a < links.size() && b < links.size() && links[a].node == links[b].node && links[a].nvlink_gbs > 0 &&
           links[b].nvlink_gbs > 0;
  }

  void add_servers() {
    std::vector<Ranks> like(before_.servers.size());  // by server: those that have joined and take what it takes
    for (const auto server : servers_.joined) like[model_of(server, like)].push_back(server);
    for_each_list([&](std::vector<Destination>& destinations) {
      const auto before = destinations.size();
      for (std::size_t i = 0; i < before; ++i) {
        for (const auto server : like[destinations[i].server]) {
          auto to = destinations[i];
          to.server = server;
          if (to.relay) to.relay = relay_of(server, like[*to.relay]);
          destinations.push_back(to);
        }
      }
    });
  }

  // A server of before with the same entries; of several, one that is the model of fewest.
  [[nodiscard]] std::size_t model_of(std::uint32_t server, const std::vector<Ranks>& like) {
    const auto& entries = after_.servers[server].entries;
    std::optional<std::size_t> model;
    const auto look = [&](const auto& is_same) {
      for (std::size_t rank = 0; rank < before_.servers.size(); ++rank) {
        if (!is_same(before_.servers[rank].entries)) continue;
        if (!model || like[rank].size() < like[*model].size()) model = rank;
      }
    };
    look([&](const SharedList<Entry>& other) { return other.identity() == entries.identity(); });
    if (!model) {
      look([&](const SharedList<Entry>& other) {
        return other.size() == entries.size() && digest_once(other) == digest_once(entries);
      });
    }
    if (!model) refuse(fmt::format("{} takes what no server took before", name_of(after_.servers[server])));
    return *model;
  }

  std::uint64_t digest_once(const SharedList<Entry>& entries) {
    const auto [found, is_new] = digests_.try_emplace(entries.identity());
    if (is_new) found->second = digest_of(entries, Role::server);
    return found->second;
  }

  // Within a node that has joined bytes are passed on as in the node that is its model; else the trainer sends them.
  [[nodiscard]] std::optional<std::uint32_t> relay_of(std::uint32_t server, const Ranks& relays) const {
    const auto near =
        std::find_if(relays.begin(), relays.end(), [&](auto relay) { return share_nvlink(relay, server); });
    return near == relays.end() ? std::nullopt : std::optional(*near);
  }

  void drop_servers() {
    std::vector<bool> is_lost(std::max(before_.servers.size(), after_.servers.size()));
    for (const auto server : servers_.lost) is_lost[server] = true;
    for_each_list([&](std::vector<Destination>& destinations) {
      const bool concerned = std::any_of(destinations.begin(), destinations.end(),
                                         [&](const Destination& to) { return is_lost[to.server]; });
      if (concerned) close_gaps(is_lost, destinations);
    });
    const auto goes_nowhere = [](const auto& step) { return step.destinations.empty(); };
    std::erase_if(plan_.steps, goes_nowhere);
    std::erase_if(plan_.scale_steps, goes_nowhere);
  }

  // The first of those whom a lost server served takes its place.
  static void close_gaps(const std::vector<bool>& is_lost, std::vector<Destination>& destinations) {
    struct Gap {
      std::optional<std::uint32_t> relay;  // who served it
      std::optional<std::uint32_t> heir;
    };
    std::map<std::uint32_t, Gap> gaps;  // by lost server
    std::vector<Destination> kept;
    for (auto to : destinations) {
      if (to.relay && is_lost[*to.relay]) {
        auto& gap = gaps.at(*to.relay);
        to.relay = gap.heir ? gap.heir : gap.relay;
        if (!gap.heir && !is_lost[to.server]) gap.heir = to.server;
      }
      if (is_lost[to.server]) {
        gaps[to.server] = {to.relay, std::nullopt};
      } else {
        kept.push_back(to);
      }
    }
    destinations = std::move(kept);
  }

  // ---- sums ----

  void count_bytes() {
    plan_.trainer_bytes.assign(after_.trainers.size(), 0);
    plan_.server_bytes.assign(after_.servers.size(), 0);
    plan_.server_loads.assign(after_.servers.size(), {});
    const auto count = [&](const auto& step, const Box& box, std::uint64_t element_bytes) {
      const auto bytes = static_cast<std::uint64_t>(elements(box)) * element_bytes * step.count;
      for (const auto& to : step.destinations) {
        auto& load = plan_.server_loads[to.server];
        plan_.server_bytes[to.server] += bytes;
        if (!to.relay) {
          load.nic_in += bytes;
          plan_.trainer_bytes[step.trainer] += bytes;
          continue;
        }
        const bool is_near = share_nvlink(*to.relay, to.server);
        (is_near ? load.nvlink_in : load.nic_in) += bytes;
        auto& relay = plan_.server_loads[*to.relay];
        (is_near ? relay.nvlink_out : relay.nic_out) += bytes;
      }
    };
    for (const auto& step : plan_.steps) {
      count(step, stored_box(step.box, step.recipe), element_bytes(step.recipe));
    }
    for (const auto& step : plan_.scale_steps) count(step, step.blocks, scale_bytes(step.recipe));
  }

  // The digest of all catalogs is the sum of theirs: only those that changed are read.
  void count_digest() {
    const auto replace = [&](const std::vector<Catalog>& before, const std::vector<Catalog>& after) {
      for (std::size_t rank = 0; rank < std::max(before.size(), after.size()); ++rank) {
        if (rank < before.size() && rank < after.size() && has_entries(before, rank) == has_entries(after, rank)) {
          continue;
        }
        if (rank < before.size()) plan_.catalogs_digest -= digest_of(before[rank]);
        if (rank < after.size()) plan_.catalogs_digest += digest_of(after[rank]);
      }
    };
    replace(before_.trainers, after_.trainers);
    replace(before_.servers, after_.servers);
  }

  Plan plan_;
  const Catalogs& before_;
  const Catalogs& after_;
  const Topology& topology_;
  Changes trainers_;
  Changes servers_;
  std::unordered_map<const void*, std::uint64_t> digests_;  // of servers' lists, by identity
};

}  // namespace

Plan replan(Plan plan, const Catalogs& before, const Catalogs& after, const Topology& topology) {
  return Replanning(std::move(plan), before, after, topology).run();
}

}  // namespace weightcast

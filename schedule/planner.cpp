#include "schedule/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "schedule/allot.h"
#include "schedule/blocks.h"
#include "schedule/box_index.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

// Under which maxima are exchanged: all of a tensor, where its scale is one of them.
Recipe measured_as(Recipe recipe) { return has_tensor_scale(recipe) ? Recipe::nvfp4_tensor_scale : recipe; }

// The blocks of `box` (inside `frame`) whose probe element lies in `box`. The probe stands `phase` elements into the
// block, or on the nearest row or column of the frame. Every block has one probe and the parts of a frame are disjoint,
// so every block has exactly one owner; another phase gives the blocks that straddle parts to another of them.
std::optional<Box> owned_blocks(const Box& box, const Box& frame, Recipe recipe, std::int64_t phase) {
  Box owned = blocks_touched(box, recipe);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto edge = block_edge(recipe, box.axes, axis);
    const auto first = frame.offset[axis];
    const auto has_probe = [&](std::int64_t block) {
      const auto probe = std::clamp(block * edge + phase % edge, first, first + frame.extent[axis] - 1);
      return probe >= box.offset[axis] && probe < box.offset[axis] + box.extent[axis];
    };
    const auto end = owned.offset[axis] + owned.extent[axis];
    if (!has_probe(end - 1)) --owned.extent[axis];
    if (owned.extent[axis] > 0 && !has_probe(owned.offset[axis])) ++owned.offset[axis], --owned.extent[axis];
    if (owned.extent[axis] <= 0) return std::nullopt;
  }
  return owned;
}

// Tensors of a family whose scales have the same owners: the owners of blocks that straddle parts take turns.
struct Turn {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  std::int64_t phase = 0;
};

// Trainers that send the same families, and all servers that take them. Each begins elsewhere in the row of servers, so
// that a server has as few of them at a time as can be; all of them go from one row to the next together.
struct Row {
  std::vector<std::uint32_t> trainers;  // ascending
  std::vector<std::uint32_t> servers;

  // Of `server`, counted from the trainer's first one.
  [[nodiscard]] std::uint32_t distance(std::uint32_t trainer, std::uint32_t server) const {
    const auto place = [](const std::vector<std::uint32_t>& ranks, std::uint32_t rank) {
      return static_cast<std::size_t>(std::lower_bound(ranks.begin(), ranks.end(), rank) - ranks.begin());
    };
    const auto start = place(trainers, trainer) * servers.size() / trainers.size();
    return static_cast<std::uint32_t>((place(servers, server) + servers.size() - start) % servers.size());
  }
};

// When a trainer sends a step, among its others.
struct Place {
  std::size_t row = 0;
  bool ends = false;           // nobody passes it on
  std::uint32_t distance = 0;  // to the receiver, in the row

  auto operator<=>(const Place&) const = default;
};

class Planner {
 public:
  Planner(const Matches& matches, const Topology& topology, const PlanOptions& options)
      : matches_(matches), topology_(topology), options_(options) {
    if (options.chunk_bytes == 0) throw Error(Code::invalid_argument, "chunk_bytes is 0");
    plan_.chunk_bytes = options.chunk_bytes;
    plan_.receiver_credits = options.receiver_credits;
    plan_.catalogs_digest = matches.catalogs_digest;
    const auto is_of = [](const auto& links, std::size_t ranks) { return links.empty() || links.size() == ranks; };
    if (!is_of(topology.trainers, matches.trainers) || !is_of(topology.servers, matches.servers)) {
      throw Error(Code::invalid_argument,
                  fmt::format("the topology has the links of {} trainers and {} servers, the catalogs are of {} and {}",
                              topology.trainers.size(), topology.servers.size(), matches.trainers, matches.servers));
    }
    allotment_.emplace(matches_, topology, options.relay && !topology.servers.empty());
    plan_.trainer_bytes.resize(matches.trainers);
    plan_.server_bytes.resize(matches.servers);
    plan_.server_loads.resize(matches.servers);
  }

  Plan make() {
    find_rows();
    for (std::size_t family = 0; family < matches_.families.size(); ++family) add_family(family);
    plan_.columns = matches_.columns;
    put_in_order();
    return std::move(plan_);
  }

 private:
  // A shard that one trainer casts for some tensors of the family, and needs foreign maxima for.
  using Ranges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;
  using Casters = std::map<Recipe, std::map<std::pair<std::size_t, Holder>, Ranges>>;

  void find_rows() {
    std::map<std::vector<std::uint32_t>, std::size_t> known;
    for (const auto& family : matches_.families) {
      std::vector<std::uint32_t> trainers;
      for (const auto& shard : family.shards) {
        for (const auto& holder : shard.holders) trainers.push_back(holder.trainer);
      }
      sort_out(trainers);
      const auto [found, is_new] = known.emplace(trainers, rows_.size());
      if (is_new) rows_.push_back({std::move(trainers), {}});
      row_of_family_.push_back(found->second);
      auto& servers = rows_[found->second].servers;
      for (const auto& frame : family.frames) {
        for (const auto& taker : frame.takers) servers.push_back(taker.server);
      }
      sort_out(servers);
    }
  }

  static void sort_out(std::vector<std::uint32_t>& ranks) {
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  }

  void add_family(std::size_t index) {
    const auto& family = matches_.families[index];
    row_ = row_of_family_[index];
    std::vector<std::vector<Turn>> turns;
    turns.reserve(family.frames.size());
    for (std::size_t frame = 0; frame < family.frames.size(); ++frame) turns.push_back(turns_of(family, frame));
    Casters casters;
    for (std::size_t p = 0; p < family.parts.size(); ++p) {
      const auto& part = family.parts[p];
      const auto& frame = family.frames[part.frame];
      for (const auto& segment : allotment_->segments(index, p)) {
        const auto order = visiting_order(segment, frame);
        const auto direct = allotment_->direct_groups(index, p);
        const auto& groups = allotment_->groups(index, part.frame);
        const Recipe measured = measured_as(frame.recipe);
        const bool needs_amax = has_scales(frame.recipe) && cuts_blocks(segment.box, family.shape, measured) &&
                                cuts_blocks(family.shards[part.shard].box, family.shape, measured);
        if (needs_amax) {
          casters[measured][{part.shard, segment.caster}].emplace_back(segment.first, segment.first + segment.count);
        }
        const auto destinations = destinations_of(segment, frame, groups, order, direct);
        for (const auto& box : pieces_of(segment, frame, needs_amax)) {
          add_step(family, frame, segment, box, needs_amax, destinations);
        }
        if (!has_scales(frame.recipe)) continue;
        for (const auto& turn : turns[part.frame]) {
          add_scale_step(frame, frame.recipe, &Taker::scales, segment, turn, destinations);
          if (!has_tensor_scale(frame.recipe)) continue;
          add_scale_step(frame, measured, &Taker::tensor_scale, segment, turn, destinations);
        }
      }
    }
    for (auto& [recipe, of_recipe] : casters) add_exchanges(family, recipe, of_recipe);
  }

  // A handful of phases, spread evenly, so that every part of a straddled block writes its share of the scales.
  std::vector<Turn> turns_of(const Family& family, std::size_t frame) {
    constexpr std::uint32_t kPhases = 4;
    if (!has_scales(family.frames[frame].recipe)) return {};
    const bool straddles = std::any_of(family.parts.begin(), family.parts.end(), [&](const Part& part) {
      return part.frame == frame && cuts_blocks(part.box, family.shape, family.frames[frame].recipe);
    });
    phase_ = (phase_ + 79) % kBlock;  // 79 / 128 is near the golden ratio: the phases of small families spread evenly
    const auto turns = straddles ? std::min(family.count, kPhases) : 1;
    std::vector<Turn> result;
    for (std::uint32_t turn = 0; turn < turns; ++turn) {
      const auto at = [&](std::uint64_t i) { return static_cast<std::uint32_t>(i * family.count / turns); };
      result.push_back({at(turn), at(turn + 1), (phase_ + turn * kBlock / turns) % kBlock});
    }
    return result;
  }

  // The first group to put to: that whose receiver is nearest. The others follow.
  [[nodiscard]] std::size_t visiting_order(const Segment& segment, const Frame& frame) const {
    const auto trainer = segment.caster.trainer;
    const auto& receivers = segment.receivers;
    const auto& row = rows_[row_];
    const auto nearest = std::min_element(receivers.begin(), receivers.end(), [&](std::uint32_t a, std::uint32_t b) {
      return row.distance(trainer, frame.takers[a].server) < row.distance(trainer, frame.takers[b].server);
    });
    return static_cast<std::size_t>(nearest - receivers.begin());
  }

  // Group by group: who receives, then those of its node. Groups beyond the direct ones are fed by one before each, so
  // that nobody feeds more than one.
  static std::vector<Destination> destinations_of(const Segment& segment, const Frame& frame,
                                                  const std::vector<Group>& groups, std::size_t first,
                                                  std::size_t direct) {
    std::vector<Destination> all;
    all.reserve(frame.takers.size());
    const auto group_at = [&](std::size_t i) { return (first + i) % groups.size(); };
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const auto receiver = segment.receivers[group_at(i)];
      const auto& taker = frame.takers[receiver];
      all.push_back({taker.server, taker.column, std::nullopt});
      if (i >= direct) all.back().relay = frame.takers[segment.receivers[group_at(i - direct)]].server;
      for (const auto other : groups[group_at(i)]) {
        if (other != receiver) all.push_back({frame.takers[other].server, frame.takers[other].column, taker.server});
      }
    }
    return all;
  }

  // A server verifies and passes on whole pieces: of a large tensor, as many as keep that going while bytes come.
  // Straddling blocks are few, and stay in one piece, as their maxima do.
  [[nodiscard]] std::vector<Box> pieces_of(const Segment& segment, const Frame& frame, bool needs_amax) const {
    constexpr std::uint64_t kMostBytes = 32ULL << 20;
    if (needs_amax || value_bytes(segment.box, frame.recipe) <= kMostBytes) return {segment.box};
    return chunks_of(segment.box, frame.box, frame.recipe, std::max(kMostBytes, plan_.chunk_bytes));
  }

  void add_step(const Family& family, const Frame& frame, const Segment& segment, const Box& box, bool needs_amax,
                std::vector<Destination> destinations) {
    Step step;
    step.trainer = segment.caster.trainer;
    step.column = segment.caster.column;
    step.first = segment.first;
    step.count = segment.count;
    step.box = box;
    step.recipe = frame.recipe;
    step.frame = frame.box;
    step.needs_amax = needs_amax;
    step.destinations = std::move(destinations);
    const auto chunks = count_chunks(step.box, step.frame, step.recipe, plan_.chunk_bytes);
    if (chunks > UINT32_MAX) {
      throw Error(Code::invalid_argument, fmt::format("tensor {}: {} pieces of {} bytes; raise chunk_bytes",
                                                      family.name, chunks, plan_.chunk_bytes));
    }
    step.chunks = static_cast<std::uint32_t>(chunks);
    require_scratch(family, step);
    count_bytes(step, value_bytes(step.box, step.recipe) * step.count);
    const bool ends = std::none_of(step.destinations.begin(), step.destinations.end(),
                                   [](const Destination& to) { return to.relay.has_value(); });
    places_.push_back({row_, ends, rows_[row_].distance(step.trainer, step.destinations.front().server)});
    plan_.steps.push_back(std::move(step));
  }

  void require_scratch(const Family& family, const Step& step) const {
    if (options_.scratch_bytes == 0) return;
    for (const auto& piece : chunks_of(step.box, step.frame, step.recipe, plan_.chunk_bytes)) {
      const auto bytes = value_bytes(piece, step.recipe);
      if (bytes <= options_.scratch_bytes) continue;
      // A piece is no smaller than a row of blocks: then a smaller chunk changes nothing.
      const auto remedy = bytes > plan_.chunk_bytes ? "" : " or lower chunk_bytes";
      throw Error(
          Code::invalid_argument,
          fmt::format("tensor {}: trainer {} casts {} at a time, {} bytes, which is more than its scratch memory "
                      "of {} bytes; raise scratch_bytes to {}{}",
                      family.name, step.trainer, to_string(piece), bytes, options_.scratch_bytes, bytes, remedy));
    }
  }

  // `scales`: the column, of each taker, that has the scales of `recipe`.
  void add_scale_step(const Frame& frame, Recipe recipe, std::uint32_t Taker::*scales, const Segment& segment,
                      const Turn& turn, const std::vector<Destination>& destinations) {
    const auto first = std::max(segment.first, turn.first);
    const auto end = std::min(segment.first + segment.count, turn.end);
    if (first >= end) return;
    const auto blocks = owned_blocks(segment.box, frame.box, recipe, turn.phase);
    if (!blocks) return;
    ScaleStep step;
    step.trainer = segment.caster.trainer;
    step.column = segment.caster.column;
    step.first = first;
    step.count = end - first;
    step.recipe = recipe;
    step.blocks = *blocks;
    step.frame = blocks_touched(frame.box, recipe);
    step.destinations = destinations;
    for (auto& to : step.destinations) to.column = taker_of(frame, to).*scales;
    count_bytes(step, static_cast<std::uint64_t>(elements(step.blocks)) * scale_bytes(step.recipe) * step.count);
    plan_.scale_steps.push_back(std::move(step));
  }

  static const Taker& taker_of(const Frame& frame, const Destination& to) {
    return *std::lower_bound(frame.takers.begin(), frame.takers.end(), to, [](const Taker& a, const Destination& b) {
      return std::tie(a.server, a.column) < std::tie(b.server, b.column);
    });
  }

  static bool have_nvlink(const RankLinks& a, const RankLinks& b) {
    return a.node == b.node && a.nvlink_gbs > 0 && b.nvlink_gbs > 0;
  }

  template <class AnyStep>
  void count_bytes(const AnyStep& step, std::uint64_t bytes) {
    for (const auto& to : step.destinations) {
      auto& load = plan_.server_loads[to.server];
      plan_.server_bytes[to.server] += bytes;
      if (!to.relay) {
        load.nic_in += bytes;
        plan_.trainer_bytes[step.trainer] += bytes;
      } else if (have_nvlink(topology_.servers[*to.relay], topology_.servers[to.server])) {
        load.nvlink_in += bytes;
        plan_.server_loads[*to.relay].nvlink_out += bytes;
      } else {
        load.nic_in += bytes;
        plan_.server_loads[*to.relay].nic_out += bytes;
      }
    }
  }

  // Every caster of straddling blocks gets the amax of the other shards' parts of the blocks that its shard touches.
  void add_exchanges(const Family& family, Recipe recipe, Casters::mapped_type& casters) {
    std::vector<Box> blocks;
    blocks.reserve(family.shards.size());
    for (const auto& shard : family.shards) blocks.push_back(blocks_touched(shard.box, recipe));
    const BoxIndex index(blocks);
    for (auto& [caster, tensors] : casters) {
      const auto shard = caster.first;
      const auto to = caster.second;
      auto& ranges = tensors;
      merge(ranges);
      index.visit(blocks[shard], [&](std::size_t other, const Box& common) {
        if (other == shard) return;
        const auto& from = sender_of(family.shards[other], family.shards[shard], to);
        for (const auto& [first, end] : ranges) {
          exchanges_[{from.trainer, to.trainer}].push_back(
              {from.column, to.column, first, end - first, recipe, common});
        }
      });
    }
  }

  // Sorted and disjoint.
  static void merge(Ranges& ranges) {
    std::sort(ranges.begin(), ranges.end());
    std::size_t last = 0;
    for (std::size_t i = 1; i < ranges.size(); ++i) {
      if (ranges[i].first <= ranges[last].second) {
        ranges[last].second = std::max(ranges[last].second, ranges[i].second);
      } else {
        ranges[++last] = ranges[i];
      }
    }
    ranges.resize(last + 1);
  }

  // The receiver itself when it holds the other shard too, else its counterpart among that shard's replicas.
  static const Holder& sender_of(const Shard& shard, const Shard& receivers, const Holder& receiver) {
    for (const auto& holder : shard.holders) {
      if (holder.trainer == receiver.trainer) return holder;
    }
    const auto place = std::find(receivers.holders.begin(), receivers.holders.end(), receiver);
    return shard.holders[static_cast<std::size_t>(place - receivers.holders.begin()) % shard.holders.size()];
  }

  // What is passed on goes first; to one receiver after the other, each trainer beginning with another one. (Receivers
  // served in turn have less to pass on while the trainer is with another one: 0.72 of a direct update's time on GPUs
  // instead of 0.58.)
  void put_in_order() {
    std::vector<std::size_t> order(plan_.steps.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto key = [&](std::size_t i) {
      const auto& step = plan_.steps[i];
      return std::tuple(step.trainer, step.needs_amax, places_[i], step.column, step.first);
    };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
    std::vector<Step> steps;
    steps.reserve(order.size());
    for (const auto i : order) steps.push_back(std::move(plan_.steps[i]));
    plan_.steps = std::move(steps);
    const auto scale_key = [](const ScaleStep& s) { return std::tie(s.trainer, s.column, s.first, s.blocks); };
    std::stable_sort(plan_.scale_steps.begin(), plan_.scale_steps.end(),
                     [&](const ScaleStep& a, const ScaleStep& b) { return scale_key(a) < scale_key(b); });
    for (auto& [pair, runs] : exchanges_) {
      std::sort(runs.begin(), runs.end(), [](const AmaxRun& a, const AmaxRun& b) {
        return std::tie(a.to_column, a.from_column, a.first, a.recipe, a.blocks) <
               std::tie(b.to_column, b.from_column, b.first, b.recipe, b.blocks);
      });
      plan_.amax.push_back({pair.first, pair.second, std::move(runs)});
    }
  }

  const Matches& matches_;
  const Topology& topology_;
  const PlanOptions& options_;
  std::optional<Allotment> allotment_;
  Plan plan_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<AmaxRun>> exchanges_;  // from, to
  std::vector<Row> rows_;
  std::vector<std::size_t> row_of_family_;
  std::size_t row_ = 0;        // of the family that is being added
  std::vector<Place> places_;  // of each step
  std::int64_t phase_ = 0;
};

}  // namespace

Plan make_plan(const Matches& matches, const Topology& topology, const PlanOptions& options) {
  return Planner(matches, topology, options).make();
}

Plan make_plan(const Catalogs& catalogs, const Topology& topology, const PlanOptions& options) {
  return make_plan(match(catalogs, options.unused_tensors), topology, options);
}

Plan make_plan(const Catalogs& catalogs, const PlanOptions& options) { return make_plan(catalogs, {}, options); }

}  // namespace weightcast

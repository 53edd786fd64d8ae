#include "schedule/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "schedule/blocks.h"
#include "schedule/box_index.h"
#include "schedule/match.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

std::uint64_t bytes_of(const Box& box, Recipe recipe) {
  return static_cast<std::uint64_t>(elements(box)) * element_bytes(recipe);
}

// Gives every part a caster. Parts that one trainer holds are fixed; the others, large ones first, go to the holder
// with the fewest bytes to send (of equals the lowest rank).
void choose_casters(std::vector<Tensor>& tensors, std::vector<std::uint64_t>& trainer_bytes) {
  struct Choice {
    std::uint64_t bytes = 0;
    Part* part = nullptr;
    const std::vector<Holder>* holders = nullptr;
  };
  std::vector<Choice> open;
  for (auto& tensor : tensors) {
    for (auto& part : tensor.parts) {
      const auto& frame = tensor.frames[part.frame];
      const auto& holders = tensor.shards[part.shard].holders;
      const auto bytes = bytes_of(part.box, frame.recipe) * frame.destinations.size();
      if (holders.size() > 1) {
        open.push_back({bytes, &part, &holders});
        continue;
      }
      part.caster = holders.front();
      trainer_bytes[part.caster.trainer] += bytes;
    }
  }
  std::stable_sort(open.begin(), open.end(), [](const Choice& a, const Choice& b) { return a.bytes > b.bytes; });
  for (const auto& choice : open) {
    choice.part->caster =
        *std::min_element(choice.holders->begin(), choice.holders->end(), [&](const Holder& a, const Holder& b) {
          return std::tie(trainer_bytes[a.trainer], a) < std::tie(trainer_bytes[b.trainer], b);
        });
    trainer_bytes[choice.part->caster.trainer] += choice.bytes;
  }
}

// The blocks of `box` (inside `frame`'s blocks) whose probe element lies in `box`. The probe stands `phase` elements
// into the block, or on the tensor's last row or column when the block is shorter. Every block has one probe and the
// parts of a frame are disjoint, so every block has exactly one owner; another phase gives the blocks that straddle
// parts to another of them.
std::optional<Box> owned_blocks(const Box& box, const std::vector<std::int64_t>& shape, std::int64_t phase) {
  Box owned = blocks_touched(box);
  for (std::size_t axis = box.axes > 2 ? box.axes - 2U : 0U; axis < box.axes; ++axis) {
    const auto has_probe = [&](std::int64_t block) {
      const auto probe = std::min(block * kBlock + phase, shape[axis] - 1);
      return probe >= box.offset[axis] && probe < box.offset[axis] + box.extent[axis];
    };
    const auto end = owned.offset[axis] + owned.extent[axis];
    if (!has_probe(end - 1)) --owned.extent[axis];
    if (owned.extent[axis] > 0 && !has_probe(owned.offset[axis])) ++owned.offset[axis], --owned.extent[axis];
    if (owned.extent[axis] <= 0) return std::nullopt;
  }
  return owned;
}

class Planner {
 public:
  Planner(const Catalogs& catalogs, const PlanOptions& options) : catalogs_(catalogs) {
    if (options.chunk_bytes == 0) throw Error(Code::invalid_argument, "chunk_bytes is 0");
    plan_.chunk_bytes = options.chunk_bytes;
    plan_.catalogs_digest = digest_of(catalogs);
    tensors_ = match(catalogs, options.unused_tensors);
    plan_.trainer_bytes.resize(catalogs.trainers.size());
    plan_.server_bytes.resize(catalogs.servers.size());
  }

  Plan make() {
    choose_casters(tensors_, plan_.trainer_bytes);
    for (const auto& tensor : tensors_) {
      add_steps(tensor);
      add_scale_steps(tensor);
      add_exchanges(tensor);
    }
    put_in_order();
    std::size_t entries = 0;
    for (const auto* side : {&catalogs_.trainers, &catalogs_.servers}) {
      for (const auto& catalog : *side) entries = std::max(entries, catalog.entries.size());
    }
    for (std::uint32_t i = 0; i < entries; ++i) plan_.columns.push_back({i});  // every family has one tensor
    for (const auto bytes : plan_.server_bytes) plan_.server_loads.push_back({.nic_in = bytes});
    return std::move(plan_);
  }

 private:
  void add_steps(const Tensor& tensor) {
    for (const auto& part : tensor.parts) {
      const auto& frame = tensor.frames[part.frame];
      Step step;
      step.trainer = part.caster.trainer;
      step.column = part.caster.entry;
      step.box = part.box;
      step.recipe = frame.recipe;
      step.frame = frame.box;
      step.destinations = frame.destinations;
      step.needs_amax = needs_amax(tensor, part);
      const auto chunks = count_chunks(step.box, step.frame, step.recipe, plan_.chunk_bytes);
      if (chunks > UINT32_MAX) {
        throw Error(Code::invalid_argument, fmt::format("tensor {}: {} pieces of {} bytes; raise chunk_bytes",
                                                        tensor.name, chunks, plan_.chunk_bytes));
      }
      step.chunks = static_cast<std::uint32_t>(chunks);
      for (const auto& to : step.destinations) plan_.server_bytes[to.server] += bytes_of(part.box, frame.recipe);
      plan_.steps.push_back(std::move(step));
    }
  }

  // Some block of the part reaches into another shard. The part's frame is made of whole blocks.
  static bool needs_amax(const Tensor& tensor, const Part& part) {
    if (!has_scales(tensor.frames[part.frame].recipe)) return false;
    return cuts_blocks(part.box, *tensor.shape);
  }

  void add_scale_steps(const Tensor& tensor) {
    std::optional<std::size_t> frame_before;
    for (const auto& part : tensor.parts) {
      const auto& frame = tensor.frames[part.frame];
      if (!has_scales(frame.recipe)) continue;
      if (frame_before != part.frame) {
        frame_before = part.frame;
        phase_ = (phase_ + 79) % kBlock;  // 79 / 128 is near the golden ratio: the phases spread evenly
      }
      const auto blocks = owned_blocks(part.box, *tensor.shape, phase_);
      if (!blocks) continue;
      ScaleStep step{part.caster.trainer,       part.caster.entry, 0, 1, *blocks,
                     blocks_touched(frame.box), frame.destinations};
      const auto bytes = bytes_of(*blocks, Recipe::fp32);
      for (auto& to : step.destinations) {
        to.column = catalogs_.servers[to.server].entries[to.column].scales.value();
        plan_.server_bytes[to.server] += bytes;
        plan_.trainer_bytes[step.trainer] += bytes;
      }
      plan_.scale_steps.push_back(std::move(step));
    }
  }

  // Every caster of straddling blocks gets the amax of the other shards' parts of the blocks that its shard touches.
  void add_exchanges(const Tensor& tensor) {
    std::set<std::pair<std::size_t, Holder>> receivers;                // shard, caster
    std::vector<std::optional<Holder>> casters(tensor.shards.size());  // the first of each shard, preferred to send
    for (const auto& part : tensor.parts) {
      if (!needs_amax(tensor, part)) continue;
      receivers.emplace(part.shard, part.caster);
      if (!casters[part.shard]) casters[part.shard] = part.caster;
    }
    if (receivers.empty()) return;
    std::vector<Box> blocks;
    blocks.reserve(tensor.shards.size());
    for (const auto& shard : tensor.shards) blocks.push_back(blocks_touched(shard.box));
    const BoxIndex index(blocks);
    for (const auto& [shard, to] : receivers) {
      index.visit(blocks[shard], [&, shard = shard, to = to](std::size_t other, const Box& common) {
        if (other == shard) return;
        const auto from = sender_of(tensor.shards[other], casters[other], to);
        exchanges_[{from.trainer, to.trainer}].push_back({from.entry, to.entry, 0, 1, common});
      });
    }
  }

  // The receiver itself when it holds the other shard too, else the trainer that casts it.
  static Holder sender_of(const Shard& shard, const std::optional<Holder>& caster, const Holder& receiver) {
    for (const auto& holder : shard.holders) {
      if (holder.trainer == receiver.trainer) return holder;
    }
    return caster.value_or(shard.holders[receiver.trainer % shard.holders.size()]);
  }

  // The destination of a step, counted from the trainer's first server on: trainer t begins with server t mod n.
  std::uint32_t distance(std::uint32_t trainer, std::uint32_t server) const {
    const auto servers = static_cast<std::uint32_t>(catalogs_.servers.size());
    return (server + servers - trainer % servers) % servers;
  }

  template <class AnyStep>
  void stagger(AnyStep& step) const {
    auto& all = step.destinations;
    const auto nearest = std::min_element(all.begin(), all.end(), [&](const Destination& a, const Destination& b) {
      return distance(step.trainer, a.server) < distance(step.trainer, b.server);
    });
    std::rotate(all.begin(), nearest, all.end());
  }

  void put_in_order() {
    for (auto& step : plan_.steps) stagger(step);
    for (auto& step : plan_.scale_steps) stagger(step);
    const auto key = [&](const Step& s) {
      return std::tuple(s.trainer, s.needs_amax, distance(s.trainer, s.destinations.front().server), s.column);
    };
    std::stable_sort(plan_.steps.begin(), plan_.steps.end(),
                     [&](const Step& a, const Step& b) { return key(a) < key(b); });
    const auto scale_key = [](const ScaleStep& s) { return std::tie(s.trainer, s.column, s.blocks); };
    std::stable_sort(plan_.scale_steps.begin(), plan_.scale_steps.end(),
                     [&](const ScaleStep& a, const ScaleStep& b) { return scale_key(a) < scale_key(b); });
    for (auto& [pair, runs] : exchanges_) {
      std::sort(runs.begin(), runs.end(), [](const AmaxRun& a, const AmaxRun& b) {
        return std::tie(a.to_column, a.from_column, a.blocks) < std::tie(b.to_column, b.from_column, b.blocks);
      });
      plan_.amax.push_back({pair.first, pair.second, std::move(runs)});
    }
  }

  const Catalogs& catalogs_;
  std::vector<Tensor> tensors_;
  Plan plan_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<AmaxRun>> exchanges_;  // from, to
  std::int64_t phase_ = 0;
};

}  // namespace

Plan make_plan(const Catalogs& catalogs, const Topology&, const PlanOptions& options) {
  return Planner(catalogs, options).make();
}

Plan make_plan(const Catalogs& catalogs, const PlanOptions& options) { return make_plan(catalogs, {}, options); }

}  // namespace weightcast

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

// The maxima that one message gives a trainer's column.
struct Given {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  Recipe recipe = Recipe::bf16;
  Box blocks;
  Box part;  // the elements of these blocks that the sender holds
  std::uint32_t from = 0;
  std::uint32_t from_column = 0;
};

// The elements of all blocks of a box of blocks.
Box elements_of(const Box& blocks, Recipe recipe, const Box& tensor) {
  Box all;
  all.axes = blocks.axes;
  for (std::size_t axis = 0; axis < blocks.axes; ++axis) {
    const auto edge = edge_of(recipe, blocks.axes, static_cast<int>(axis));
    all.offset[axis] = blocks.offset[axis] * edge;
    all.extent[axis] =
        std::min((blocks.offset[axis] + blocks.extent[axis]) * edge, tensor.extent[axis]) - all.offset[axis];
  }
  return all;
}

// One who needs the amax of whole blocks, for some tensors of a column.
struct Caster {
  std::uint32_t trainer = 0;
  std::uint32_t column = 0;
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  Recipe recipe = Recipe::bf16;
  Box blocks;
  bool waits = true;  // for the exchange
};

class AmaxCheck {
 public:
  AmaxCheck(const Plan& plan, Facts& facts) : facts_(facts) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> pairs;
    for (const auto& exchange : plan.amax) {
      if (!pairs.insert({exchange.from, exchange.to}).second) {
        violated("two amax messages from trainer {} to trainer {}", exchange.from, exchange.to);
      }
      for (const auto& run : exchange.runs) add(exchange, run);
    }
  }

  // True when some of it comes from others.
  template <class Name>
  bool require_whole_blocks(const Caster& caster, const Name& name) {
    const auto& own = *facts_.trainer(caster.trainer, caster.column, name).entry;
    std::vector<Box> foreign = {elements_of(caster)};
    subtract(foreign, own.box);
    if (foreign.empty()) return false;
    if (!caster.waits) {
      violated("{} casts blocks {} of which its trainer holds only a part, without waiting for the amax exchange",
               name(), to_string(caster.blocks));
    }
    const auto& given = given_[{caster.trainer, caster.column}];
    std::vector<std::uint32_t> places = {caster.first, caster.end};
    for (const auto& one : given) {
      for (const auto place : {one.first, one.end}) {
        if (place > caster.first && place < caster.end) places.push_back(place);
      }
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (std::size_t i = 0; i + 1 < places.size(); ++i) {
      auto missing = foreign;
      for (const auto& one : given) {
        if (one.recipe == caster.recipe && one.first <= places[i] && places[i] < one.end) subtract(missing, one.part);
      }
      if (missing.empty()) continue;
      violated("{} needs the amax of {}, which nobody sends its trainer", name(), to_string(missing.front()));
    }
    return true;
  }

  // The same of the tensor, where blocks are scaled against it. `box`: the elements that are cast, or whose scales
  // are.
  template <class Name>
  bool require_whole_tensors(Caster caster, const Box& box, const Name& name) {
    if (!has_tensor_scale(caster.recipe)) return false;
    caster.recipe = Recipe::nvfp4_tensor_scale;
    caster.blocks = blocks_meeting(box, caster.recipe);
    return require_whole_blocks(caster, name);
  }

  [[nodiscard]] Box elements_of(const Caster& caster) const {
    const auto& shape = facts_.trainer(caster.trainer, caster.column, [] { return "a step"; }).entry->shape.get();
    return proof::elements_of(caster.blocks, caster.recipe, whole(shape));
  }

 private:
  void add(const AmaxExchange& exchange, const AmaxRun& run) {
    const auto nobody = [] { return "an amax exchange"; };
    const auto& from = facts_.trainer(exchange.from, run.from_column, nobody);
    const auto& to = facts_.trainer(exchange.to, run.to_column, nobody);
    const auto who = [&] {
      return fmt::format("the amax of blocks {} of {} from trainer {} ({}) to trainer {} ({})", to_string(run.blocks),
                         from.entry->tensor, exchange.from, to_string(from.entry->box), exchange.to,
                         to_string(to.entry->box));
    };
    if (run.count == 0 || run.first > from.tensors.size() || run.count > from.tensors.size() - run.first) {
      violated("{}: column {} has not these tensors", who(), run.from_column);
    }
    if (exchange.from == exchange.to && run.from_column == run.to_column) violated("{}: this is one entry", who());
    if (!Facts::same_tensors(from, to, run.first, run.count) || from.entry->shape != to.entry->shape) {
      violated("{}: these are two tensors", who());
    }
    const auto& box = from.entry->box;
    if (!has_scales(run.recipe)) violated("{}: {} has no blocks", who(), to_string(run.recipe));
    const bool both_have = elements(run.blocks) > 0 && run.blocks.axes == box.axes &&
                           contains(blocks_meeting(box, run.recipe), run.blocks) &&
                           contains(blocks_meeting(to.entry->box, run.recipe), run.blocks);
    if (!both_have) violated("{}: not both have a part of every block", who());
    auto& given = given_[{exchange.to, run.to_column}];
    for (const auto& one : given) {
      if (one.recipe == run.recipe && one.from == exchange.from && one.from_column == run.from_column &&
          one.first < run.first + run.count && run.first < one.end && intersect(one.blocks, run.blocks)) {
        violated("trainer {} sends the amax of blocks {} of {} twice to trainer {}", exchange.from,
                 to_string(*intersect(one.blocks, run.blocks)), from.entry->tensor, exchange.to);
      }
    }
    const auto part = intersect(proof::elements_of(run.blocks, run.recipe, whole(from.entry->shape.get())), box);
    given.push_back(
        {run.first, run.first + run.count, run.recipe, run.blocks, part.value(), exchange.from, run.from_column});
  }

  Facts& facts_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<Given>> given_;  // by trainer and column
};

}  // namespace

void check_amax(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof) {
  AmaxCheck check(plan, facts);
  for (std::size_t index = 0; index < plan.steps.size(); ++index) {
    const auto& step = plan.steps[index];
    if (!has_scales(step.recipe)) continue;
    const Caster caster{step.trainer,   step.column,
                        step.first,     step.first + step.count,
                        step.recipe,    blocks_meeting(step.box, step.recipe),
                        step.needs_amax};
    const auto name = [&] { return describe(plan, catalogs, index); };
    const bool waits = check.require_whole_blocks(caster, name);
    if (check.require_whole_tensors(caster, step.box, name) || waits) ++proof.waiting_steps;
  }
  for (std::size_t index = 0; index < plan.scale_steps.size(); ++index) {
    const auto& step = plan.scale_steps[index];
    const Caster caster{step.trainer, step.column, step.first, step.first + step.count, step.recipe, step.blocks};
    const auto name = [&] { return describe_scales(plan, catalogs, index); };
    check.require_whole_blocks(caster, name);
    check.require_whole_tensors(caster, check.elements_of(caster), name);
  }
}

}  // namespace weightcast::proof

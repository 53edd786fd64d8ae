#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

// The part of one block that another trainer measures and sends.
struct Received {
  std::uint32_t to = 0;
  std::uint32_t to_entry = 0;
  std::int64_t block = 0;
  std::uint32_t from = 0;
  std::uint32_t from_entry = 0;
  friend auto operator<=>(const Received&, const Received&) = default;
};

const Entry& weights(const Catalogs& catalogs, std::uint32_t trainer, std::uint32_t entry) {
  if (trainer >= catalogs.trainers.size() || entry >= catalogs.trainers[trainer].entries.size()) {
    violated("an amax exchange names entry {} of trainer {}, which does not exist", entry, trainer);
  }
  return catalogs.trainers[trainer].entries[entry];
}

void add_run(const AmaxExchange& exchange, const AmaxRun& run, const Catalogs& catalogs,
             std::vector<Received>& received) {
  const auto& from = weights(catalogs, exchange.from, run.from_column);
  const auto& to = weights(catalogs, exchange.to, run.to_column);
  const auto who = [&] {
    return fmt::format("the amax of blocks {} from trainer {} (entry {}, {} {}) to trainer {} (entry {}, {} {})",
                       to_string(run.blocks), exchange.from, run.from_column, from.tensor, to_string(from.box),
                       exchange.to, run.to_column, to.tensor, to_string(to.box));
  };
  if (&from == &to) violated("{}: this is one entry", who());
  if (from.tensor != to.tensor || from.shape != to.shape) violated("{}: these are two tensors", who());
  const bool both_have = elements(run.blocks) > 0 && run.blocks.axes == from.box.axes &&
                         contains(blocks_touched(from.box), run.blocks) && contains(blocks_touched(to.box), run.blocks);
  if (!both_have) violated("{}: not both have a part of every block", who());
  const Box tensor = whole(from.shape);
  for_each_block(run.blocks, [&](const Box& block) {
    received.push_back({exchange.to, run.to_column, block_number(block, tensor), exchange.from, run.from_column});
  });
}

// Sorted by receiver and block.
std::vector<Received> all_received(const Plan& plan, const Catalogs& catalogs) {
  std::vector<Received> received;
  std::set<std::pair<std::uint32_t, std::uint32_t>> pairs;
  for (const auto& exchange : plan.amax) {
    if (!pairs.insert({exchange.from, exchange.to}).second) {
      violated("two amax messages from trainer {} to trainer {}", exchange.from, exchange.to);
    }
    for (const auto& run : exchange.runs) add_run(exchange, run, catalogs, received);
  }
  std::sort(received.begin(), received.end());
  const auto twice = std::adjacent_find(received.begin(), received.end());
  if (twice != received.end()) {
    violated("trainer {} sends the amax of block {} of {} twice to trainer {}", twice->from, twice->block,
             catalogs.trainers[twice->to].entries[twice->to_entry].tensor, twice->to);
  }
  return received;
}

// One who needs the amax of whole blocks.
struct Caster {
  std::uint32_t trainer = 0;
  std::uint32_t entry = 0;
  Box blocks;
  bool waits = true;  // for the exchange
};

class AmaxCheck {
 public:
  AmaxCheck(const Plan& plan, const Catalogs& catalogs)
      : catalogs_(catalogs), received_(all_received(plan, catalogs)) {}

  template <class Name>
  void require_whole_blocks(const Caster& caster, const Name& name) {
    const auto& own = catalogs_.trainers[caster.trainer].entries[caster.entry];
    const Box tensor = whole(own.shape);
    for_each_block(caster.blocks, [&](const Box& block) {
      const Box all = elements_of_block(block, tensor);
      if (contains(own.box, all)) return;
      const auto number = block_number(block, tensor);
      if (!caster.waits) {
        violated("{} casts block {} of which its trainer holds only a part, without waiting for the amax exchange",
                 name(), to_string(block));
      }
      const auto missing = missing_of(all, own, caster, number);
      if (!missing.empty()) {
        violated("{} needs the amax of block {} but nobody sends its trainer that of {}", name(), to_string(block),
                 to_string(missing.front()));
      }
      straddling_.emplace(own.tensor, number);
    });
  }

  [[nodiscard]] std::uint64_t straddling_blocks() const { return straddling_.size(); }

 private:
  [[nodiscard]] std::vector<Box> missing_of(const Box& all, const Entry& own, const Caster& caster,
                                            std::int64_t number) const {
    std::vector<Box> missing = {all};
    subtract(missing, own.box);
    const auto key = [](const Received& r) { return std::tie(r.to, r.to_entry, r.block); };
    const Received wanted{caster.trainer, caster.entry, number, 0, 0};
    for (auto part = std::lower_bound(received_.begin(), received_.end(), wanted);
         part != received_.end() && key(*part) == key(wanted) && !missing.empty(); ++part) {
      subtract(missing, catalogs_.trainers[part->from].entries[part->from_entry].box);
    }
    return missing;
  }

  const Catalogs& catalogs_;
  std::vector<Received> received_;
  std::set<std::pair<std::string_view, std::int64_t>> straddling_;
};

}  // namespace

void check_amax(const Plan& plan, const Catalogs& catalogs, Proof& proof) {
  AmaxCheck check(plan, catalogs);
  for (std::size_t index = 0; index < plan.steps.size(); ++index) {
    const auto& step = plan.steps[index];
    if (!has_scales(step.recipe)) continue;
    check.require_whole_blocks({step.trainer, step.column, blocks_touched(step.box), step.needs_amax},
                               [&] { return describe(plan, catalogs, index); });
  }
  for (std::size_t index = 0; index < plan.scale_steps.size(); ++index) {
    const auto& step = plan.scale_steps[index];
    check.require_whole_blocks({step.trainer, step.column, step.blocks},
                               [&] { return describe_scales(plan, catalogs, index); });
  }
  proof.straddling_blocks = check.straddling_blocks();
}

}  // namespace weightcast::proof

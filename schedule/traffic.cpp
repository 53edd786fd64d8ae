#include "schedule/traffic.h"

#include <algorithm>
#include <string_view>
#include <tuple>
#include <unordered_set>

#include "schedule/blocks.h"
#include "schedule/proof_geometry.h"

namespace weightcast {
namespace {

using std::uint64_t;

// Adds steps up. A pair counts the tensors of one column before those of the next.
class Adder {
 public:
  Adder(const Plan& plan, const Catalogs& catalogs)
      : plan_(plan), catalogs_(catalogs), pairs_(catalogs.trainers.size() * catalogs.servers.size()) {}

  template <class AnyStep>
  void add(const AnyStep& step, uint64_t bytes_of_one, uint64_t element_bytes, const std::vector<Box>& chunks) {
    const Entry* before = nullptr;
    uint64_t puts = 0;
    for (const auto& to : step.destinations) {
      if (to.relay) {
        traffic_.relayed_bytes += bytes_of_one * step.count;
        continue;
      }
      const auto& entry = catalogs_.servers[to.server].entries[plan_.columns[to.column][step.first]];
      if (before == nullptr || before->strides_bytes != entry.strides_bytes) {  // most replicas are laid out alike
        before = &entry;
        puts = 0;
        for (const auto& chunk : chunks) puts += proof::count_runs(entry, chunk, element_bytes);
      }
      auto& pair = pairs_[step.trainer * catalogs_.servers.size() + to.server];
      pair.sum.bytes += bytes_of_one * step.count;
      pair.sum.puts += puts * step.count;
      count_tensors(pair, step.column, step.first, step.first + step.count);
    }
  }

  Traffic finish() {
    const auto servers = catalogs_.servers.size();
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      if (pairs_[i].sum.bytes == 0) continue;
      auto& pair = traffic_.pairs.emplace_back(pairs_[i].sum);
      pair.trainer = static_cast<std::uint32_t>(i / servers);
      pair.server = static_cast<std::uint32_t>(i % servers);
      traffic_.bytes += pair.bytes;
      traffic_.puts += pair.puts;
    }
    std::unordered_set<const void*> lists;
    std::unordered_set<std::string_view> names;
    for (const auto& server : catalogs_.servers) {
      if (!lists.insert(server.entries.identity()).second) continue;
      for (const auto& entry : server.entries) names.insert(entry.tensor);
    }
    traffic_.tensors = names.size();
    return std::move(traffic_);
  }

 private:
  struct Pair {
    PairTraffic sum;
    uint64_t column = UINT64_MAX;  // whose tensors below `end` are counted
    std::uint32_t end = 0;
  };

  static void count_tensors(Pair& pair, std::uint32_t column, std::uint32_t first, std::uint32_t end) {
    if (pair.column != column) pair.end = 0;
    pair.column = column;
    first = std::max(first, pair.end);
    if (end > first) pair.sum.tensors += end - first;
    pair.end = std::max(pair.end, end);
  }

  const Plan& plan_;
  const Catalogs& catalogs_;
  std::vector<Pair> pairs_;  // trainer by trainer
  Traffic traffic_;
};

}  // namespace

Traffic traffic_of(const Plan& plan, const Catalogs& catalogs) {
  Adder adder(plan, catalogs);
  std::vector<std::size_t> order(plan.steps.size() + plan.scale_steps.size());  // steps, then scale steps, counted on
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  const auto key = [&](std::size_t i) {
    if (i < plan.steps.size()) return std::tuple(plan.steps[i].trainer, plan.steps[i].column, plan.steps[i].first);
    const auto& step = plan.scale_steps[i - plan.steps.size()];
    return std::tuple(step.trainer, step.column, step.first);
  };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
  for (const auto i : order) {
    if (i < plan.steps.size()) {
      const auto& step = plan.steps[i];
      adder.add(step, value_bytes(step.box, step.recipe), element_bytes(step.recipe),
                chunks_of(step.box, step.frame, step.recipe, plan.chunk_bytes));
    } else {
      const auto& step = plan.scale_steps[i - plan.steps.size()];
      const auto scale = scale_bytes(step.recipe);
      adder.add(step, static_cast<uint64_t>(elements(step.blocks)) * scale, scale, {step.blocks});
    }
  }
  auto traffic = adder.finish();
  for (const auto& exchange : plan.amax) {
    if (exchange.from == exchange.to) continue;
    ++traffic.amax_messages;
    for (const auto& run : exchange.runs) {
      traffic.amax_bytes += static_cast<uint64_t>(elements(run.blocks)) * sizeof(float) * run.count;
    }
  }
  return traffic;
}

}  // namespace weightcast

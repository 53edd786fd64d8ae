#include "schedule/traffic.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast {
namespace {

using std::uint64_t;

// Adds steps up, tensor by tensor, so that a pair needs to know only the last tensor that it counted.
class Adder {
 public:
  explicit Adder(const Catalogs& catalogs)
      : catalogs_(catalogs), pairs_(catalogs.trainers.size() * catalogs.servers.size()) {}

  void begin_tensor() { ++traffic_.tensors; }

  void add(const Step& step, uint64_t chunk_bytes) {
    const auto size = element_bytes(step.recipe);
    add(step.trainer, step.destinations, step.box, size, chunks_of(step.box, step.frame, step.recipe, chunk_bytes));
  }
  void add(const ScaleStep& step) { add(step.trainer, step.destinations, step.blocks, sizeof(float), {step.blocks}); }

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
    return std::move(traffic_);
  }

 private:
  struct Sum {
    PairTraffic sum;
    uint64_t last_tensor = 0;  // counted from 1
  };

  void add(std::uint32_t trainer, const std::vector<Destination>& destinations, const Box& box, uint64_t element_bytes,
           const std::vector<Box>& chunks) {
    const Entry* before = nullptr;
    uint64_t puts = 0;
    for (const auto& to : destinations) {
      const auto& entry = catalogs_.servers[to.server].entries[to.column];
      if (before == nullptr || before->strides_bytes != entry.strides_bytes) {  // most replicas are laid out alike
        before = &entry;
        puts = 0;
        for (const auto& chunk : chunks) puts += proof::count_runs(entry, chunk, element_bytes);
      }
      auto& [sum, last_tensor] = pairs_[trainer * catalogs_.servers.size() + to.server];
      sum.bytes += static_cast<uint64_t>(elements(box)) * element_bytes;
      sum.puts += puts;
      if (std::exchange(last_tensor, traffic_.tensors) != traffic_.tensors) ++sum.tensors;
    }
  }

  const Catalogs& catalogs_;
  std::vector<Sum> pairs_;  // trainer by trainer
  Traffic traffic_;
};

// Positions of all steps, then of all scale steps, by tensor.
std::vector<std::vector<std::size_t>> by_tensor(const Plan& plan, const Catalogs& catalogs) {
  std::unordered_map<std::string_view, std::size_t> numbers;
  std::vector<std::vector<std::size_t>> positions;
  const auto place = [&](const auto& step, std::size_t position) {
    const auto& name = catalogs.trainers[step.trainer].entries[step.column].tensor;
    const auto [found, is_new] = numbers.emplace(name, positions.size());
    if (is_new) positions.emplace_back();
    positions[found->second].push_back(position);
  };
  for (std::size_t i = 0; i < plan.steps.size(); ++i) place(plan.steps[i], i);
  for (std::size_t i = 0; i < plan.scale_steps.size(); ++i) place(plan.scale_steps[i], plan.steps.size() + i);
  return positions;
}

}  // namespace

Traffic traffic_of(const Plan& families, const Catalogs& catalogs) {
  const auto plan = proof::tensor_by_tensor(families);
  Adder adder(catalogs);
  for (const auto& positions : by_tensor(plan, catalogs)) {
    adder.begin_tensor();
    for (const auto i : positions) {
      if (i < plan.steps.size()) {
        adder.add(plan.steps[i], plan.chunk_bytes);
      } else {
        adder.add(plan.scale_steps[i - plan.steps.size()]);
      }
    }
  }
  auto traffic = adder.finish();
  for (const auto& exchange : plan.amax) {
    if (exchange.from == exchange.to) continue;
    ++traffic.amax_messages;
    for (const auto& run : exchange.runs) {
      traffic.amax_bytes += static_cast<uint64_t>(elements(run.blocks)) * sizeof(float);
    }
  }
  return traffic;
}

}  // namespace weightcast

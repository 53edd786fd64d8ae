#include "schedule/plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "schedule/blocks.h"

namespace weightcast {
namespace {

// How a step's box is cut: one index at a time on the axes before `axis`, `step` at a time on it, whole behind it.
// The cuts on `axis` stand at anchor + n * step, so that pieces end at blocks or words.
struct BoxCut {
  std::size_t axis = 0;
  std::int64_t step = 1;
  std::int64_t anchor = 0;  // at most the box's offset, less than one step before it
};

std::int64_t floor_to(std::int64_t value, std::int64_t multiple) { return value - value % multiple; }

BoxCut cut_of(const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes) {
  const auto last = static_cast<std::size_t>(box.axes - 1);
  const bool blocked = has_scales(recipe) && !spans_an_axis(recipe);
  const auto smallest_axis = blocked && last > 0 ? last - 1 : last;  // blocked: never cut inside a block's row
  const auto limit = static_cast<std::int64_t>(std::min<std::uint64_t>(chunk_bytes, std::uint64_t{1} << 62));
  const auto element = static_cast<std::int64_t>(element_bytes(recipe));

  BoxCut cut{smallest_axis, 1, 0};
  const Box stored = stored_box(box, recipe);
  std::int64_t index_bytes = element;  // of one index of cut.axis
  for (std::size_t axis = cut.axis + 1; axis <= last; ++axis) index_bytes *= stored.extent[axis];
  while (cut.axis > 0 && index_bytes * stored.extent[cut.axis] <= limit) {
    index_bytes *= stored.extent[cut.axis];
    --cut.axis;
  }
  const bool inside_words = !blocked && cut.axis == last;
  const bool inside_blocks = blocked && cut.axis == smallest_axis;
  const auto unit = inside_blocks ? block_edge(recipe, box.axes, smallest_axis) : inside_words ? 8 / element : 1;
  cut.step = std::max(floor_to(limit / index_bytes, unit), unit);
  const auto from = inside_words ? frame.offset[cut.axis] : inside_blocks ? 0 : box.offset[cut.axis];
  cut.anchor = from + floor_to(box.offset[cut.axis] - from, unit);
  return cut;
}

template <class AnyStep>
std::vector<TargetExtent> targets_of(const AnyStep& step, std::uint32_t tensor, const Plan& plan,
                                     const Catalogs& catalogs) {
  std::vector<TargetExtent> targets;
  targets.reserve(step.destinations.size());
  for (const auto& to : step.destinations) {
    if (to.relay) continue;
    const auto& entry = catalogs.servers[to.server].entries[plan.columns[to.column][step.first + tensor]];
    targets.push_back({to.server, entry.region, entry.byte_offset, entry.strides_bytes});
  }
  return targets;
}

AmaxMessage message_of(const AmaxExchange& exchange, const Plan& plan) {
  AmaxMessage message{exchange.from, exchange.to, {}};
  for (const auto& run : exchange.runs) {
    for (auto i = run.first; i < run.first + run.count; ++i) {
      message.parts.push_back(
          {plan.columns[run.from_column][i], plan.columns[run.to_column][i], run.recipe, run.blocks});
    }
  }
  return message;
}

}  // namespace

std::uint64_t digest_of(const Catalogs& catalogs) {
  std::uint64_t sum = 0;
  for (const auto* side : {&catalogs.trainers, &catalogs.servers}) {
    std::unordered_map<const void*, std::uint64_t> known;  // by the identity of a list
    for (const auto& catalog : *side) {
      const auto [found, is_new] = known.try_emplace(catalog.entries.identity());
      if (is_new) found->second = digest_of(catalog.entries, catalog.role);
      sum += digest_of(catalog, found->second);
    }
  }
  return sum;
}

std::uint64_t count_chunks(const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes) {
  const auto cut = cut_of(box, frame, recipe, chunk_bytes);
  std::int64_t count = 1;
  for (std::size_t axis = 0; axis < cut.axis; ++axis) count *= box.extent[axis];
  const auto end = box.offset[cut.axis] + box.extent[cut.axis];
  return static_cast<std::uint64_t>(count * ((end - cut.anchor + cut.step - 1) / cut.step));
}

std::vector<Box> chunks_of(const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes) {
  const auto cut = cut_of(box, frame, recipe, chunk_bytes);
  const auto end = box.offset[cut.axis] + box.extent[cut.axis];
  std::vector<Box> chunks;
  chunks.reserve(count_chunks(box, frame, recipe, chunk_bytes));
  Box chunk = box;
  for (std::size_t axis = 0; axis < cut.axis; ++axis) chunk.extent[axis] = 1;
  while (true) {
    for (auto begin = cut.anchor; begin < end; begin += cut.step) {
      chunk.offset[cut.axis] = std::max(begin, box.offset[cut.axis]);
      chunk.extent[cut.axis] = std::min(begin + cut.step, end) - chunk.offset[cut.axis];
      chunks.push_back(chunk);
    }
    auto axis = cut.axis;
    while (axis > 0) {
      --axis;
      if (++chunk.offset[axis] < box.offset[axis] + box.extent[axis]) break;
      chunk.offset[axis] = box.offset[axis];
      if (axis == 0) return chunks;
    }
    if (cut.axis == 0) return chunks;
  }
}

std::vector<SignalExtent> signals_of(std::span<const std::uint64_t> piece_bytes) {
  constexpr std::uint64_t kMostSignals = 32;          // so that signals stay O(pairs)
  constexpr std::uint64_t kFewestBytes = 1ULL << 20;  // less is verified and passed on sooner than it is told
  const std::uint64_t total = std::accumulate(piece_bytes.begin(), piece_bytes.end(), std::uint64_t{0});
  const std::uint64_t enough = std::max(kFewestBytes, total / kMostSignals);
  std::vector<SignalExtent> signals;
  for (const std::uint64_t bytes : piece_bytes) {
    if (signals.empty() || signals.back().bytes >= enough) signals.emplace_back();
    ++signals.back().pieces;
    signals.back().bytes += bytes;
  }
  return signals;
}

TrainerTable trainer_table(const Plan& plan, const Catalogs& catalogs, std::uint32_t trainer) {
  TrainerTable table;
  table.trainer = trainer;
  table.chunk_bytes = plan.chunk_bytes;
  for (const auto& step : plan.steps) {
    if (step.trainer != trainer) continue;
    for (std::uint32_t i = 0; i < step.count; ++i) {
      table.steps.push_back({plan.columns[step.column][step.first + i], step.box, step.recipe, step.frame, step.chunks,
                             step.needs_amax, step.signal, targets_of(step, i, plan, catalogs)});
    }
  }
  for (const auto& step : plan.scale_steps) {
    if (step.trainer != trainer) continue;
    for (std::uint32_t i = 0; i < step.count; ++i) {
      table.scale_steps.push_back({plan.columns[step.column][step.first + i], step.recipe, step.blocks, step.frame,
                                   targets_of(step, i, plan, catalogs)});
    }
  }
  for (const auto& exchange : plan.amax) {
    if (exchange.from == trainer) table.amax_out.push_back(message_of(exchange, plan));
    if (exchange.to == trainer) table.amax_in.push_back(message_of(exchange, plan));
  }
  return table;
}

bool passes_on(const ServerTable& table) {
  return std::any_of(table.senders.begin(), table.senders.end(),
                     [](const ExpectedSender& sender) { return !sender.forwards.empty(); });
}

}  // namespace weightcast

// The exchange of maxima of blocks that straddle trainers.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/pipeline.h"

namespace weightcast {
namespace {

// To the greater of both, whoever else raises it.
void raise(float& amax, float value) {
  const std::atomic_ref<float> shared(amax);
  float before = shared.load(std::memory_order_relaxed);
  while (before < value && !shared.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
  }
}

}  // namespace

// Threads share the rows of an entry, and so a block of it.
void Pipeline::measure_spanning(Worker& worker) {
  while (!stopped()) {
    const std::size_t index = next_spanning_.fetch_add(1, std::memory_order_relaxed);
    if (index >= spanning_.size()) return;
    const auto start = Clock::now();
    const auto& [key, view] = spanning_[index];
    const int axes = catalog_.entries[key.first].box.axes;
    const SourceMatrix source = source_of(key.first, view);
    const BlockOrigin origin = block_origin(view, axes);
    const auto amax = std::span(worker.amax).first(blocks_touched(source, key.second, origin));
    const BadValue bad = block_amax(source, key.second, origin, amax);
    if (bad.found()) fail_bad_value(key.first, key.second, view, bad);
    BlockGrid& grid = grids_.at(key);
    for_each_block(blocks_touched_by(view, axes, key.second), grid.blocks,
                   [&](std::size_t at, std::size_t running) { raise(grid.own[at], amax[running]); });
    worker.cast_seconds += seconds_since(start);
  }
}

// What this trainer holds of the blocks of a run. Throws Error internal when that is not a part of each.
Box Pipeline::shared_elements(const AmaxPart& run) const {
  const Entry& entry = catalog_.entries[run.from_entry];
  Box elements_of_run = run.blocks;
  for (std::size_t axis = 0; axis < run.blocks.axes; ++axis) {
    const std::int64_t edge = block_edge(run.recipe, run.blocks.axes, axis);
    elements_of_run.offset[axis] *= edge;
    elements_of_run.extent[axis] *= edge;
  }
  const auto part = intersect(elements_of_run, entry.box);
  if (!part || blocks_touched(*part, run.recipe) != run.blocks) {
    throw Error(Code::internal, fmt::format("{}: planned to share blocks {} of '{}', holds only {}", name_of(catalog_),
                                            to_string(run.blocks), entry.tensor, to_string(entry.box)));
  }
  return *part;
}

void Pipeline::send_amax() {
  for (std::size_t index = 0; index < outgoing_.size() && !stopped(); ++index) {
    Outgoing& out = outgoing_[index];
    const AmaxMessage& exchange = table_.amax_out[index];
    encode_amax_header(out.message, token_, exchange.from, exchange.to);
    auto* values = reinterpret_cast<float*>(out.message.data() + kAmaxHeaderBytes);
    std::size_t done = 0;
    for (const AmaxPart& run : exchange.parts) {
      const Entry& entry = catalog_.entries[run.from_entry];
      if (spans_an_axis(run.recipe)) {
        const BlockGrid& grid = grids_.at({run.from_entry, run.recipe});
        for_each_block(run.blocks, grid.blocks, [&](std::size_t at, std::size_t) { values[done++] = grid.own[at]; });
        continue;
      }
      for_each_matrix(shared_elements(run), entry.box, [&](const MatrixView& view) {
        const SourceMatrix source = source_of(run.from_entry, view);
        const BlockOrigin origin = block_origin(view, entry.box.axes);
        const std::size_t blocks = blocks_touched(source, run.recipe, origin);
        const BadValue bad = block_amax(source, run.recipe, origin, {values + done, blocks});
        if (bad.found()) fail_bad_value(run.from_entry, run.recipe, view, bad);
        done += blocks;
      });
    }
    const Status sent = fabric_.send(out.peer, out.message, &amax_sent_, deadline_);
    if (!sent.ok()) fail(sent);
  }
}

void Pipeline::on_amax(const AmaxValues& values) {
  const std::scoped_lock lock(amax_mutex_);
  for (std::size_t index = 0; index < incoming_.size(); ++index) {
    if (table_.amax_in[index].from != values.from || table_.amax_in[index].to != values.to) continue;
    if (incoming_[index].values.size() != values.values.size()) continue;
    std::memcpy(incoming_[index].values.data(), values.values.data(), values.values.size());
    incoming_[index].token = values.token;
  }
  amax_changed_.notify_all();
}

// Waits for every exchange of this attempt, then takes the maxima. The first worker that needs them does it.
void Pipeline::receive_amax() {
  std::unique_lock lock(amax_mutex_);
  const auto missing = [this] {
    return std::find_if(incoming_.begin(), incoming_.end(), [this](const Incoming& in) { return in.token != token_; });
  };
  while (!amax_folded_ && !stopped() && missing() != incoming_.end()) {
    if (deadline_.passed()) {
      const auto from = table_.amax_in[static_cast<std::size_t>(missing() - incoming_.begin())].from;
      fail(Status(Code::timed_out, fmt::format("{}, version {}: no block maxima from trainer {} within {} ms",
                                               name_of(catalog_), version_, from, config_.times.update_ms)));
    }
    amax_changed_.wait_for(lock, kPoll);
  }
  if (std::exchange(amax_folded_, true) || stopped()) return;
  for (std::size_t index = 0; index < incoming_.size(); ++index) {
    const std::byte* next = incoming_[index].values.data();
    for (const AmaxPart& run : table_.amax_in[index].parts) {
      const auto found = grids_.find({run.to_entry, run.recipe});
      for_each_block(run.blocks, found->second.blocks, [&](std::size_t at, std::size_t running) {
        float value = 0;
        std::memcpy(&value, next + running * sizeof(float), sizeof value);
        found->second.foreign[at] = std::max(found->second.foreign[at], value);
      });
      next += static_cast<std::size_t>(elements(run.blocks)) * sizeof(float);
    }
  }
}

}  // namespace weightcast

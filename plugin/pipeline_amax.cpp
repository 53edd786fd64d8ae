// The exchange of maxima of blocks that straddle trainers.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/pipeline.h"

namespace weightcast {
namespace {

constexpr auto kRecipe = Recipe::fp8_e4m3_128x128_fp32;  // all that exchange maxima have its blocks

}  // namespace

// What this trainer holds of the blocks of a run. Throws Error internal when that is not a part of each.
Box Pipeline::shared_elements(const AmaxPart& run) const {
  const Entry& entry = catalog_.entries[run.from_entry];
  Box elements_of_run = run.blocks;
  for (int axis = std::max(0, run.blocks.axes - 2); axis < run.blocks.axes; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    elements_of_run.offset[a] *= kBlock;
    elements_of_run.extent[a] *= kBlock;
  }
  const auto part = intersect(elements_of_run, entry.box);
  if (!part || blocks_of(*part) != run.blocks) {
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
      for_each_matrix(shared_elements(run), entry.box, [&](const MatrixView& view) {
        const SourceMatrix source = source_of(run.from_entry, view);
        const BlockOrigin origin = block_origin(view, entry.box.axes);
        const std::size_t blocks = blocks_touched(source, kRecipe, origin);
        const BadValue bad = block_amax(source, kRecipe, origin, {values + done, blocks});
        if (bad.found()) {
          TrainerStep step;
          step.entry = run.from_entry;
          step.box = entry.box;
          step.recipe = kRecipe;
          fail_bad_value(step, view, bad);
        }
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
      const auto found = grids_.find(run.to_entry);
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

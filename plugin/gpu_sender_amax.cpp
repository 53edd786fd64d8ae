// The maxima that a GPU's sender takes before it casts: of blocks that straddle trainers, and of those that span an
// axis.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/gpu_sender.h"

namespace weightcast {

// The maxima of straddling blocks one behind the other, as their messages hold them; those of blocks that span an axis
// where casts look for them.
void GpuSender::lay_out_measuring() {
  measuring_.clear();
  const auto add = [this](std::uint32_t entry, Recipe recipe, const MatrixView& view, float* to) {
    const int axes = pipeline_.catalog_.entries[entry].box.axes;
    const Box blocks = blocks_touched_by(view, axes, recipe);
    GpuCastJob job;
    job.source = pipeline_.source_of(entry, view);
    job.origin = block_origin(view, axes);
    job.amax = to;
    job.amax_row_stride = blocks.extent[static_cast<std::size_t>(blocks.axes - 1)];
    measuring_[recipe].jobs.push_back(job);
    measuring_[recipe].matrices.push_back({{entry, recipe}, view});
    return to + elements(blocks);
  };
  for (const Pipeline::Spanning& rows : pipeline_.spanning_) {
    const Box& grid = pipeline_.grids_.at(rows.key).blocks;
    const Box blocks = blocks_touched_by(rows.view, grid.axes, rows.key.second);
    (void)add(rows.key.first, rows.key.second, rows.view,
              reinterpret_cast<float*>(maxima_.get()) + grids_.at(rows.key) + index_in(grid, blocks.offset));
  }
  std::uint64_t values = 0;
  for (const Pipeline::Outgoing& out : pipeline_.outgoing_) values += out.values;
  outgoing_ = DeviceBuffer(values * sizeof(float));
  outgoing_host_ = PinnedBuffer(values * sizeof(float));
  auto* next = reinterpret_cast<float*>(outgoing_.get());
  for (const AmaxMessage& exchange : pipeline_.table_.amax_out) {
    for (const AmaxPart& run : exchange.parts) {
      if (spans_an_axis(run.recipe)) {
        next += elements(run.blocks);  // copied from the grid, on the host
        continue;
      }
      require_measurable(run.from_entry, run.recipe);
      for_each_matrix(pipeline_.shared_elements(run), pipeline_.catalog_.entries[run.from_entry].box,
                      [&](const MatrixView& view) { next = add(run.from_entry, run.recipe, view, next); });
    }
  }
  for (auto& [recipe, of_recipe] : measuring_) {
    of_recipe.measure.emplace(recipe, of_recipe.jobs);
    of_recipe.findings = std::make_unique<GpuFindings>(1);
  }
}

// The kernels measure blocks of 128x128, rows and matrices.
void GpuSender::require_measurable(std::uint32_t entry, Recipe recipe) const {
  if (block_shape(recipe).rows == kBlock && block_shape(recipe).cols == kBlock) return;
  throw Error(Code::invalid_argument,
              fmt::format("{}: '{}' is cut inside {} of {}, which CUDA memory cannot be: cut its columns at multiples "
                          "of {}",
                          name_of(pipeline_.catalog_), pipeline_.catalog_.entries[entry].tensor, blocks_text(recipe),
                          to_string(recipe), block_shape(recipe).cols));
}

// ---- one version ----

void GpuSender::begin_measuring() {
  is_measuring_ = true;
  if (measuring_.empty()) return;
  fill_async(outgoing_.get(), std::byte{0}, outgoing_.bytes(), stream_);
  fill_async(maxima_.get(), std::byte{0}, maxima_.bytes(), stream_);
  for (auto& [recipe, of_recipe] : measuring_) {
    of_recipe.findings->clear(stream_);
    of_recipe.measure->measure(stream_, *of_recipe.findings);
    of_recipe.findings->fetch(stream_);
  }
  copy_async(outgoing_host_.get(), outgoing_.get(), outgoing_.bytes(), stream_);
  if (!pipeline_.spanning_.empty()) copy_async(maxima_host_.get(), maxima_.get(), maxima_.bytes(), stream_);
}

// Waits for what was measured, and sends others their part. The first call of an update does; casts of blocks that span
// an axis need it before, others go on meanwhile.
void GpuSender::end_measuring() {
  if (!std::exchange(is_measuring_, false)) return;
  if (!measuring_.empty() && !await_stream()) return;
  for (const auto& [recipe, of_recipe] : measuring_) {
    if (!of_recipe.findings->found_bad()) continue;
    const auto& [key, view] = of_recipe.matrices[of_recipe.findings->bad_job()];
    pipeline_.fail_bad_value(key.first, recipe, view, of_recipe.findings->bad_value(view.cols));
    return;
  }
  if (!pipeline_.spanning_.empty()) {
    for (auto& [key, grid] : pipeline_.grids_) {
      if (!spans_an_axis(key.second)) continue;
      std::memcpy(grid.own.data(), maxima_host_.get() + grids_.at(key) * sizeof(float),
                  grid.own.size() * sizeof(float));
    }
  }
  if (!pipeline_.stopped()) send_amax();
}

void GpuSender::send_amax() {
  const std::byte* measured = outgoing_host_.get();
  for (std::size_t index = 0; index < pipeline_.outgoing_.size() && !pipeline_.stopped(); ++index) {
    Pipeline::Outgoing& out = pipeline_.outgoing_[index];
    const AmaxMessage& exchange = pipeline_.table_.amax_out[index];
    encode_amax_header(out.message, pipeline_.token_, exchange.from, exchange.to);
    std::byte* next = out.message.data() + kAmaxHeaderBytes;
    std::memcpy(next, measured, out.values * sizeof(float));
    measured += out.values * sizeof(float);
    for (const AmaxPart& run : exchange.parts) {
      if (spans_an_axis(run.recipe)) {
        const Pipeline::BlockGrid& grid = pipeline_.grids_.at({run.from_entry, run.recipe});
        for_each_block(run.blocks, grid.blocks, [&](std::size_t at, std::size_t running) {
          std::memcpy(next + running * sizeof(float), &grid.own[at], sizeof(float));
        });
      }
      next += static_cast<std::size_t>(elements(run.blocks)) * sizeof(float);
    }
    const Status sent = pipeline_.fabric_.send(out.peer, out.message, &pipeline_.amax_sent_, pipeline_.deadline_);
    if (!sent.ok()) pipeline_.fail(sent);
  }
}

void GpuSender::upload_foreign() {
  for (const auto* item : pipeline_.exchanged_) {
    const auto& [key, grid] = *item;
    auto* values = reinterpret_cast<float*>(maxima_host_.get()) + grids_.at(key);
    const bool is_measured = spans_an_axis(key.second);
    for (std::size_t at = 0; at < grid.foreign.size(); ++at) {
      values[at] = is_measured ? std::max(grid.own[at], grid.foreign[at]) : grid.foreign[at];
    }
  }
  copy_async(maxima_.get(), maxima_host_.get(), maxima_.bytes(), stream_);
  (void)await_stream();
}

}  // namespace weightcast

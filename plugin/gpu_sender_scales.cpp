// The scales of a GPU's sender: they stand in the grids that casts fill, and go out behind the last casts.
#include <algorithm>
#include <map>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/extent.h"
#include "plugin/gpu_sender.h"

namespace weightcast {

void GpuSender::lay_out_scales() {
  scale_lots_.clear();
  std::map<std::vector<std::pair<std::uint32_t, std::uint32_t>>, std::uint32_t> lots;  // by servers and their signals
  std::vector<GpuDigestJob> digests;
  std::vector<ByteRun> rows;  // `from` is in scales_ yet
  for (std::size_t index = 0; index < pipeline_.scale_jobs_.size(); ++index) {
    const Pipeline::ScaleJob& job = pipeline_.scale_jobs_[index];
    const TrainerScaleStep& step = pipeline_.table_.scale_steps[job.step];
    const Pipeline::GridKey key{step.entry, step.recipe};
    const std::uint64_t element = scale_bytes(step.recipe);
    const Box& grid = pipeline_.grids_.at(key).blocks;
    const auto pitch = static_cast<std::int64_t>(element) * grid.extent[static_cast<std::size_t>(grid.axes - 1)];
    std::vector<std::pair<std::uint32_t, std::uint32_t>> covered_by;
    for (const Pipeline::Target& target : job.targets) covered_by.emplace_back(target.server, target.signal);
    const auto lot = lots.emplace(std::move(covered_by), static_cast<std::uint32_t>(scale_lots_.size())).first->second;
    if (lot == scale_lots_.size()) scale_lots_.push_back({index, 0, 0});
    ++scale_lots_[lot].jobs;
    for_each_matrix(step.blocks, step.frame, [&](const MatrixView& view) {
      const std::uint64_t offset = grids_.at(key) * sizeof(float) + index_in(grid, view.origin) * element;
      const auto row_bytes = static_cast<std::uint64_t>(view.cols) * element;
      scale_lots_[lot].bytes += static_cast<std::uint64_t>(view.rows) * row_bytes;
      digests.push_back({scales_.get() + offset, static_cast<std::uint64_t>(view.rows), row_bytes, pitch,
                         digest_frame(job.digest_key, step.frame, view, element), lot, false});
      for (const Pipeline::Target& target : job.targets) {
        ByteRun run = run_to(target, step.frame, view);
        run.from = offset;
        run.bytes = row_bytes;
        for (std::int64_t row = 0; row < view.rows; ++row) {
          rows.push_back(run);
          run.from += static_cast<std::uint64_t>(pitch);
          run.to += static_cast<std::uint64_t>(row_stride(target.strides, step.frame.axes));
        }
      }
    });
  }
  lay_out_tensor_scales();
  scale_digest_.emplace(digests);
  scale_findings_ = std::make_unique<GpuFindings>(static_cast<std::uint32_t>(scale_lots_.size()));
  PartedRuns parted = part_runs(
      rows, [this](const ByteRun& row) { return mapped_target(row) != nullptr; }, false);
  scale_stores_ = stores_of(parted.stored, [this](const ByteRun& row) { return scales_.get() + row.from; });
  lay_out_gathering(std::move(parted.put));
}

// Scales of whole tensors are made on the host, which knows everybody's maxima; a kernel brings them to the others.
void GpuSender::lay_out_tensor_scales() {
  tensor_scales_.clear();
  std::uint64_t bytes = 0;
  for (const auto& [key, grid] : pipeline_.grids_) {
    if (key.second != Recipe::nvfp4_tensor_scale) continue;
    tensor_scales_.push_back({&grid, grids_.at(key) * sizeof(float), bytes});
    bytes += grid.own.size() * sizeof(float);
  }
  tensor_scales_host_ = PinnedBuffer(bytes);
  std::vector<GpuCopyJob> copies;
  copies.reserve(tensor_scales_.size());
  for (const TensorScales& of : tensor_scales_) {
    copies.push_back({tensor_scales_host_.get() + of.from, scales_.get() + of.to, of.grid->own.size() * sizeof(float)});
  }
  tensor_scales_copy_.emplace(copies);
}

void GpuSender::make_tensor_scales() {
  for (const TensorScales& of : tensor_scales_) {
    for (std::size_t at = 0; at < of.grid->own.size(); ++at) {
      const float amax = std::max(of.grid->own[at], of.grid->foreign[at]);
      encode_scales(Recipe::nvfp4_tensor_scale, {&amax, 1}, 0,
                    tensor_scales_host_.get() + of.from + at * sizeof(float));
    }
  }
  tensor_scales_copy_->launch(stream_);
}

// Neighbouring tensors' scales are neighbours on servers: gathered in the order of their memory, they are few runs.
void GpuSender::lay_out_gathering(std::vector<ByteRun> rows) {
  Gathering gathering = gather_runs(std::move(rows), pipeline_.config_.performance.chunk_bytes);
  if (gathered_region_) pipeline_.fabric_.release(*gathered_region_);
  gathered_region_.reset();
  gathered_ = DeviceBuffer(gathering.bytes);
  if (gathering.bytes != 0) {
    gathered_region_ = pipeline_.fabric_.register_memory({gathered_.get(), gathering.bytes, MemoryKind::cuda});
  }
  std::vector<GpuCopyJob> copies;
  copies.reserve(gathering.rows.size());
  for (const Gathering::Row& row : gathering.rows) {
    copies.push_back({scales_.get() + row.from, gathered_.get() + row.to, row.bytes});
  }
  gathering_.emplace(copies);
  scale_runs_ = std::move(gathering.runs);
  for (ByteRun& run : scale_runs_) run.from_region = *gathered_region_;
}

// Behind all casts, and beside what still goes out of the last ones.
void GpuSender::begin_scales() {
  if (scale_lots_.empty()) return;
  for (const CudaEvent& ended : cast_ended_) ended.delay(stream_);
  make_tensor_scales();
  scale_findings_->clear(stream_);
  scale_digest_->launch(stream_, pipeline_.version_, *scale_findings_);
  scale_findings_->fetch(stream_);
  gathering_->launch(stream_);
  if (!scale_stores_ || !may_store()) return;
  store(*scale_stores_, stream_);
  scales_stored_.record(stream_);
}

void GpuSender::send_scales() {
  if (scale_lots_.empty() || !await_stream()) return;
  put(scale_runs_, scale_puts_);
  for (std::uint32_t index = 0; index < scale_lots_.size() && !pipeline_.stopped(); ++index) {
    const ScaleLot& lot = scale_lots_[index];
    const auto& targets = pipeline_.scale_jobs_[lot.first_job].targets;
    pipeline_.count(targets, lot.bytes, scale_findings_->digest(index));
    pipeline_.signal_complete(targets, lot.jobs);
  }
}

}  // namespace weightcast

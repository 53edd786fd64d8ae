#include "plugin/gpu_sender.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/extent.h"
#include "transport/cuda.h"

namespace weightcast {
namespace {

constexpr std::size_t kMostSlots = 3;
constexpr std::uint64_t kSlotAlignment = 256;  // of a matrix in its slot: the kernels' fast path wants 16

std::uint64_t aligned(std::uint64_t bytes) { return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment; }

int first_device_of(const Catalog& catalog) {
  const Region& first = catalog.regions.front();
  return check_cuda_memory({reinterpret_cast<std::byte*>(first.address), first.bytes, MemoryKind::cuda});
}

// Makes the device's context current before members that need it are made.
int enter(int device) {
  use_primary_cuda_context(device);
  return device;
}

std::size_t slots_for(const Config& config) {
  return config.performance.scratch_bytes / kMostSlots >= config.performance.chunk_bytes + kSlotAlignment ? kMostSlots
                                                                                                          : 2;
}

}  // namespace

bool GpuSender::serves(const Catalog& catalog) {
  const auto is_cuda = [](const Region& region) { return region.kind == MemoryKind::cuda; };
  if (std::none_of(catalog.regions.begin(), catalog.regions.end(), is_cuda)) return false;
  for (const Region& region : catalog.regions) {
    if (!is_cuda(region)) {
      throw Error(
          Code::invalid_argument,
          fmt::format("{}: region '{}' is host memory and others are CUDA memory: a trainer's shards are in one "
                      "kind of memory; give them to two ranks",
                      name_of(catalog), region.name));
    }
    const int device = check_cuda_memory({reinterpret_cast<std::byte*>(region.address), region.bytes, region.kind});
    if (device != first_device_of(catalog)) {
      throw Error(Code::invalid_argument, fmt::format("{}: region '{}' is on CUDA device {}, others are on device {}",
                                                      name_of(catalog), region.name, device, first_device_of(catalog)));
    }
  }
  return true;
}

GpuSender::GpuSender(Pipeline& pipeline)
    : pipeline_(pipeline),
      device_(enter(first_device_of(pipeline.catalog_))),
      ring_(slots_for(pipeline.config_)),
      storing_(CudaStream::Kind::urgent),
      cast_ended_(ring_.slots()),
      scratch_(aligned(pipeline.config_.performance.scratch_bytes)),
      slot_bytes_(scratch_.bytes() / ring_.slots() / kSlotAlignment * kSlotAlignment),
      puts_(ring_.slots()) {
  if (!has_gpu_kernels()) {
    throw Error(Code::unavailable,
                fmt::format("{}: shards in CUDA memory need a build with nvcc", name_of(pipeline.catalog_)));
  }
  scratch_region_ = pipeline_.fabric_.register_memory({scratch_.get(), scratch_.bytes(), MemoryKind::cuda});
}

GpuSender::~GpuSender() {
  pipeline_.fabric_.release(scratch_region_);
  if (gathered_region_) pipeline_.fabric_.release(*gathered_region_);
}

// ---- what is laid out once ----

void GpuSender::adopt() {
  const CudaContextScope current(device_);
  batches_.clear();
  find_stored_to();
  lay_out_grids();
  lay_out_batches();
  std::size_t most = 1;
  for (const Batch& batch : batches_) most = std::max(most, batch.parts.size());
  findings_.clear();
  for (std::size_t slot = 0; slot < ring_.slots(); ++slot) {
    findings_.push_back(std::make_unique<GpuFindings>(static_cast<std::uint32_t>(most)));
  }
  lay_out_scales();
  lay_out_measuring();
}

// Those first that casts take maxima from: they are few, and maxima are cleared, copied and uploaded in every update.
void GpuSender::lay_out_grids() {
  std::set<Pipeline::GridKey> with_maxima;
  for (const TrainerStep& step : pipeline_.table_.steps) {
    if (step.needs_amax) with_maxima.insert({step.entry, step.recipe});
  }
  for (const auto& [key, grid] : pipeline_.grids_) {
    if (grid.is_exchanged || spans_an_axis(key.second)) with_maxima.insert(key);
  }
  grids_.clear();
  std::uint64_t blocks = 0;
  for (const bool has_maxima : {true, false}) {
    for (const auto& [key, grid] : pipeline_.grids_) {
      if (with_maxima.contains(key) != has_maxima) continue;
      grids_[key] = blocks;
      blocks += static_cast<std::uint64_t>(elements(grid.blocks));
    }
    if (!has_maxima) continue;
    maxima_ = DeviceBuffer(blocks * sizeof(float));
    maxima_host_ = PinnedBuffer(blocks * sizeof(float));
  }
  scales_ = DeviceBuffer(blocks * sizeof(float));
}

// Those that need other trainers' maxima are not first, when they would wait for them, and not last, when nothing else
// would be on the wire while the maxima go to the device.
void GpuSender::lay_out_batches() {
  const std::size_t straddling = pipeline_.first_straddling_;
  const std::size_t before = straddling * 3 / 4;
  lay_out_batches(0, before);
  first_straddling_ = straddling < pipeline_.chunks_.size() ? batches_.size() : SIZE_MAX;
  lay_out_batches(straddling, pipeline_.chunks_.size());
  lay_out_batches(before, straddling);
}

// Chunks in their order, as many to a batch as a slot holds. What goes to several servers from where it stands, and so
// needs no slot, makes longer ones: the longer a batch, the less often its servers change. All of one recipe.
void GpuSender::lay_out_batches(std::size_t first_chunk, std::size_t end_chunk) {
  Batch batch;
  std::uint64_t filled = 0;
  bool as_it_is = false;
  Recipe recipe = Recipe::bf16;
  const auto finish = [&] {
    if (batch.parts.empty()) return;
    finish_batch(std::exchange(batch, Batch{}), as_it_is, recipe, batches_.size() % ring_.slots());
    filled = 0;
  };
  for (std::size_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
    const Pipeline::StepJob& job = pipeline_.jobs_[pipeline_.chunks_[chunk].job];
    const TrainerStep& step = pipeline_.table_.steps[job.step];
    std::vector<Part> parts;
    std::uint64_t bytes = 0;
    for_each_matrix(pipeline_.chunks_[chunk].box, step.frame, [&](const MatrixView& view) {
      parts.push_back({chunk, view, bytes, false});
      bytes += aligned(static_cast<std::uint64_t>(view.rows) * row_bytes(step.recipe, view.cols));
    });
    parts.back().ends_chunk = true;
    if (!job.as_it_is && bytes > slot_bytes_) {
      throw Error(
          Code::invalid_argument,
          fmt::format("{}: performance.scratch_bytes = {} makes {} slots of {} bytes, and a chunk of '{}' needs "
                      "{}: set it to {} or more",
                      name_of(pipeline_.catalog_), pipeline_.config_.performance.scratch_bytes, ring_.slots(),
                      slot_bytes_, pipeline_.catalog_.entries[step.entry].tensor, bytes, bytes * ring_.slots()));
    }
    const std::uint64_t most = job.as_it_is && job.targets.size() > 1 ? scratch_.bytes() : slot_bytes_;
    if (job.as_it_is != as_it_is || step.recipe != recipe || filled + bytes > most) finish();
    as_it_is = job.as_it_is;
    recipe = step.recipe;
    for (Part& part : parts) {
      part.offset += filled;
      batch.parts.push_back(part);
    }
    filled += bytes;
  }
  finish();
}

void GpuSender::append(std::vector<ByteRun>& runs, const ByteRun& run) const {
  append_run(runs, run, pipeline_.config_.performance.chunk_bytes);
}

ByteRun GpuSender::run_to(const Pipeline::Target& target, const Box& frame, const MatrixView& view) {
  ByteRun run;
  run.server = target.server;
  run.peer = target.peer;
  run.to_region = target.region;
  run.to = target.offset + offset_in_frame(frame, target.strides, view.origin);
  return run;
}

void GpuSender::append_runs(const Part& part, std::size_t slot, std::vector<ByteRun>& runs) const {
  const Pipeline::StepJob& job = pipeline_.jobs_[pipeline_.chunks_[part.chunk].job];
  const TrainerStep& step = pipeline_.table_.steps[job.step];
  const Entry& entry = pipeline_.catalog_.entries[step.entry];
  const auto width = static_cast<std::int64_t>(row_bytes(step.recipe, part.view.cols));
  const std::int64_t pitch = job.as_it_is ? row_stride(entry.strides_bytes, entry.box.axes) : width;
  const Box frame = stored_box(step.frame, step.recipe);
  const MatrixView stored = stored_view(part.view, frame.axes, step.recipe);
  for (const Pipeline::Target& target : job.targets) {
    const std::int64_t target_pitch = row_stride(target.strides, step.frame.axes);
    const bool gapless = part.view.rows == 1 || (pitch == width && target_pitch == width);
    ByteRun run = run_to(target, frame, stored);
    run.from_region = job.as_it_is ? pipeline_.source_regions_[entry.region] : scratch_region_;
    run.from = job.as_it_is ? byte_at(entry, part.view.origin) : slot * slot_bytes_ + part.offset;
    run.bytes = static_cast<std::uint64_t>(gapless ? width * part.view.rows : width);
    for (std::int64_t row = 0; row < (gapless ? 1 : part.view.rows); ++row) {
      append(runs, run);
      run.from += static_cast<std::uint64_t>(pitch);
      run.to += static_cast<std::uint64_t>(target_pitch);
    }
  }
}

void GpuSender::finish_batch(Batch batch, bool as_it_is, Recipe recipe, std::size_t slot) {
  std::vector<GpuCastJob> casts;
  std::vector<GpuDigestJob> digests;
  std::vector<ByteRun> runs;
  for (const Part& part : batch.parts) {
    const auto number = static_cast<std::uint32_t>(as_it_is ? digests.size() : casts.size());
    const GpuCastJob job = cast_job(part, slot, number);
    append_runs(part, slot, runs);
    if (!as_it_is) {
      casts.push_back(job);
      continue;
    }
    const auto row_bytes = 2 * static_cast<std::uint64_t>(job.source.cols);
    digests.push_back({job.source.data, static_cast<std::uint64_t>(job.source.rows), row_bytes,
                       2 * job.source.row_stride, job.frame, number, true});
  }
  if (as_it_is) {
    batch.digest.emplace(digests);
  } else {
    batch.cast.emplace(recipe, casts);
  }
  PartedRuns parted = part_runs(
      runs, [this](const ByteRun& run) { return mapped_target(run) != nullptr; }, CudaCopies::are_supported());
  batch.stores = stores_of(parted.stored, [this](const ByteRun& run) {
    return pipeline_.fabric_.memory(run.from_region).address + run.from;
  });
  batch.copies = copies_of(parted.copied);
  batch.puts = std::move(parted.put);
  batches_.push_back(std::move(batch));
}

GpuCastJob GpuSender::cast_job(const Part& part, std::size_t slot, std::uint32_t number) const {
  const Pipeline::StepJob& job = pipeline_.jobs_[pipeline_.chunks_[part.chunk].job];
  const TrainerStep& step = pipeline_.table_.steps[job.step];
  GpuCastJob cast;
  cast.source = pipeline_.source_of(step.entry, part.view);
  cast.origin = block_origin(part.view, step.box.axes);
  cast.output = scratch_.get() + slot * slot_bytes_ + part.offset;
  cast.output_row_bytes = static_cast<std::int64_t>(row_bytes(step.recipe, part.view.cols));
  cast.frame = digest_frame(job.digest_key, stored_box(step.frame, step.recipe),
                            stored_view(part.view, step.frame.axes, step.recipe), job.element_bytes);
  cast.digest_slot = number;
  if (!has_scales(step.recipe)) return cast;
  const bool is_against_tensor = has_tensor_scale(step.recipe);
  if (step.needs_amax && !spans_an_axis(step.recipe) && !is_against_tensor) {
    require_measurable(step.entry, step.recipe);
  }
  const Pipeline::GridKey key{step.entry, step.recipe};
  const Box& grid = pipeline_.grids_.at(key).blocks;
  const std::uint64_t first = index_in(grid, blocks_touched_by(part.view, step.box.axes, step.recipe).offset);
  const std::int64_t across = grid.extent[static_cast<std::size_t>(grid.axes - 1)];
  cast.scales = scales_.get() + grids_.at(key) * sizeof(float) + first * scale_bytes(step.recipe);
  cast.scale_row_stride = across;
  cast.amax_row_stride = across;
  if (is_against_tensor) {
    const Pipeline::GridKey tensor{step.entry, Recipe::nvfp4_tensor_scale};
    const Box matrix = blocks_touched_by(part.view, step.box.axes, tensor.second);
    cast.amax = reinterpret_cast<float*>(maxima_.get()) + grids_.at(tensor) +
                index_in(pipeline_.grids_.at(tensor).blocks, matrix.offset);
  } else if (step.needs_amax || spans_an_axis(step.recipe)) {
    cast.amax = reinterpret_cast<float*>(maxima_.get()) + grids_.at(key) + first;
  }
  return cast;
}

// ---- one version ----

void GpuSender::send() {
  try {
    const CudaContextScope current(device_);
    scale_puts_.reset();
    for (Tally& puts : puts_) puts.reset();
    begin_measuring();
    if (!pipeline_.spanning_.empty() || batches_.empty()) end_measuring();  // else while the first batch is cast
    if (batches_.empty()) begin_scales();
    const Status status = ring_.run(batches_.size(), *this, pipeline_.deadline_);
    if (!status.ok()) {
      pipeline_.fail(Status(status.code(), fmt::format("{}, version {}: {}", name_of(pipeline_.catalog_),
                                                       pipeline_.version_, status.message())));
    }
    if (!pipeline_.stopped()) send_scales();
  } catch (const Error& error) {
    pipeline_.fail(Status(error.code(), fmt::format("{}, version {}: {}", name_of(pipeline_.catalog_),
                                                    pipeline_.version_, error.what())));
  }
}

bool GpuSender::is_free(std::size_t slot) {
  if (puts_[slot].outstanding() != 0) return false;
  const Status status = puts_[slot].failed() ? puts_[slot].first_failure() : Status();
  if (status.code() == Code::refused) pipeline_.fail(status);  // the lease; lost connections show at the signal
  puts_[slot].reset();
  return true;
}

const CudaStream& GpuSender::enqueue(std::size_t batch, std::size_t slot, const CudaStream& stream) {
  if (batch == first_straddling_) {
    end_measuring();
    pipeline_.receive_amax();
    upload_foreign();
  }
  Batch& work = batches_[batch];
  GpuFindings& findings = *findings_[slot];
  findings.clear(stream);
  if (work.cast) work.cast->launch(stream, pipeline_.version_, findings);
  if (work.digest) work.digest->launch(stream, pipeline_.version_, findings);
  findings.fetch(stream);
  cast_ended_[slot].record(stream);
  if (batch + 1 == batches_.size()) begin_scales();
  if (!work.stores && work.copies.empty()) return stream;
  cast_ended_[slot].delay(storing_);
  move_out(batch);
  return storing_;
}

void GpuSender::deliver(std::size_t batch, std::size_t slot) {
  end_measuring();
  const Batch& work = batches_[batch];
  const GpuFindings& findings = *findings_[slot];
  const auto job_of = [&](const Part& part) -> const Pipeline::StepJob& {
    return pipeline_.jobs_[pipeline_.chunks_[part.chunk].job];
  };
  if (findings.found_bad()) {
    const Part& part = work.parts[findings.bad_job()];
    const TrainerStep& step = pipeline_.table_.steps[job_of(part).step];
    pipeline_.fail_bad_value(step.entry, step.recipe, part.view, findings.bad_value(part.view.cols));
    return;
  }
  for (std::size_t index = 0; index < work.parts.size(); ++index) {
    const Part& part = work.parts[index];
    const Pipeline::StepJob& job = job_of(part);
    const Recipe recipe = pipeline_.table_.steps[job.step].recipe;
    pipeline_.count(job.targets, static_cast<std::uint64_t>(part.view.rows) * row_bytes(recipe, part.view.cols),
                    findings.digest(static_cast<std::uint32_t>(index)));
  }
  put(work.puts, puts_[slot]);
  for (const Part& part : work.parts) {
    if (part.ends_chunk && !pipeline_.stopped()) pipeline_.signal_complete(job_of(part).targets);
  }
}

void GpuSender::put(const std::vector<ByteRun>& runs, Tally& tally) {
  for (const ByteRun& run : runs) {
    const Pipeline::ServerLink& link = *pipeline_.servers_[run.server];
    if (pipeline_.stopped()) return;
    if (link.dropped) continue;
    const Put put{run.peer, run.from_region, run.from, run.to_region, run.to, run.bytes, &tally};
    const Status status = pipeline_.fabric_.put(put, pipeline_.deadline_);
    if (!status.ok() && !link.dropped && status.code() != Code::unreachable) pipeline_.fail(status);
  }
}

bool GpuSender::has_to_stop() { return pipeline_.stopped(); }

bool GpuSender::await_stream() {
  event_.record(stream_);
  for (bool is_done = false; !is_done; std::this_thread::yield()) {
    throw_if_failed(event_.query(is_done));
    if (!is_done && pipeline_.deadline_.passed()) {
      throw Error(Code::timed_out, "the GPU did not end its work in time");
    }
  }
  return !pipeline_.stopped();
}

std::uint64_t GpuSender::flying() const {
  std::uint64_t count = scale_puts_.outstanding();
  for (const Tally& puts : puts_) count += puts.outstanding();
  const CudaContextScope current(device_);
  for (const CudaEvent* event : {&stored_, &scales_stored_}) {
    bool is_done = false;
    if (event->query(is_done).ok() && !is_done) ++count;  // a device that failed stores nothing any more
  }
  return count;
}

}  // namespace weightcast

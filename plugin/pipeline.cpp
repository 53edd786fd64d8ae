#include "plugin/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/extent.h"
#include "plugin/gpu_sender.h"

namespace weightcast {
namespace {

constexpr std::size_t kPage = 4096;

}  // namespace

void Pipeline::FreeScratch::operator()(std::byte* memory) const noexcept { std::free(memory); }

Pipeline::Pipeline(const Config& config, Fabric& fabric, const Catalog& catalog, std::vector<RegionId> regions)
    : config_(config),
      fabric_(fabric),
      catalog_(catalog),
      source_regions_(std::move(regions)),
      team_(threads_of(config.performance.threads)) {
  if (GpuSender::serves(catalog_)) {
    gpu_ = std::make_unique<GpuSender>(*this);
    return;
  }
  const std::uint64_t bytes = (config.performance.scratch_bytes + kPage - 1) / kPage * kPage;
  scratch_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, bytes)));
  if (!scratch_) {
    throw Error(Code::unavailable, fmt::format("{}: no memory for performance.scratch_bytes = {}", name_of(catalog_),
                                               config.performance.scratch_bytes));
  }
  std::memset(scratch_.get(), 0, bytes);
  scratch_region_ = fabric_.register_memory({scratch_.get(), bytes, MemoryKind::host});
}

Pipeline::~Pipeline() {
  if (!gpu_) fabric_.release(scratch_region_);
}

MoveResult Pipeline::move(std::uint64_t version, std::uint64_t token) {
  const auto start = Clock::now();
  reset_for(version, token);
  fabric_.set_active(true);
  if (gpu_) {
    gpu_->send();
  } else {
    send_from_host();
  }
  if (!stopped()) await_signals();
  MoveResult result;
  result.cut_off = drain();
  fabric_.set_active(false);
  {
    const std::scoped_lock lock(failure_mutex_);
    result.status = failure_;
  }
  result.seconds = seconds_since(start);
  for (const auto& link : servers_) {
    if (link->dropped) continue;
    for (const auto& covered : link->signals) result.bytes += covered->bytes;
  }
  for (const auto& worker : workers_) result.cast_seconds += worker->cast_seconds;
  return result;
}

void Pipeline::send_from_host() {
  const auto all_work = [this](void (Pipeline::*part)(Worker&)) {
    const std::function<void(std::size_t)> of_member = [this, part](std::size_t member) {
      if (member < workers_.size()) (this->*part)(*workers_[member]);
    };
    team_.run(of_member);
  };
  if (!spanning_.empty()) all_work(&Pipeline::measure_spanning);
  send_amax();
  all_work(&Pipeline::work);
  if (!stopped()) send_scales(*workers_[0]);
}

void Pipeline::reset_for(std::uint64_t version, std::uint64_t token) {
  version_ = version;
  deadline_ = Deadline::after(Milliseconds(config_.times.update_ms));
  next_batch_ = 0;
  next_spanning_ = 0;
  bytes_done_ = 0;
  {
    const std::scoped_lock lock(failure_mutex_);
    token_ = token;
    failure_ = closed_ ? Status(Code::aborted, "the trainer is being closed") : Status();
    if (cancelled_token_ == token) failure_ = cancelled_why_;
    stopped_ = !failure_.ok();
  }
  {
    const std::scoped_lock lock(amax_mutex_);
    amax_folded_ = false;
  }
  if (!gpu_) {  // which has its own on the GPU
    for (auto& [key, grid] : grids_) std::fill(grid.own.begin(), grid.own.end(), 0.0F);
  }
  for (auto* item : exchanged_) std::fill(item->second.foreign.begin(), item->second.foreign.end(), 0.0F);
  for (const auto& link : servers_) {
    link->signalled.reset();
    for (const auto& covered : link->signals) {
      covered->waits_for = covered->chunks;
      covered->bytes = 0;
      covered->digest = 0;
    }
  }
  for (const auto& worker : workers_) {
    worker->cast_seconds = 0;
    for (const Slots* slots : {&worker->scratch, &worker->direct}) {
      for (const auto& slot : slots->all) slot->puts.reset();
    }
  }
  amax_sent_.reset();
}

void Pipeline::fail(Status why) {
  const std::scoped_lock lock(failure_mutex_);
  if (stopped_) return;
  failure_ = std::move(why);
  stopped_ = true;
}

void Pipeline::stop(std::uint64_t token, const Status& why) {
  {
    const std::scoped_lock lock(failure_mutex_);
    cancelled_token_ = token;
    cancelled_why_ = why;
    if (token != token_ || stopped_) return;
    failure_ = why;
    stopped_ = true;
  }
  amax_changed_.notify_all();
}

void Pipeline::close() {
  {
    const std::scoped_lock lock(failure_mutex_);
    closed_ = true;
    if (!stopped_) failure_ = Status(Code::aborted, "the trainer is being closed");
    stopped_ = true;
  }
  amax_changed_.notify_all();
}

void Pipeline::drop(std::uint32_t server) {
  const std::scoped_lock lock(servers_mutex_);
  for (const auto& link : servers_) {
    if (link->rank != server || link->dropped.exchange(true)) continue;
    fabric_.disconnect(link->peer);
  }
}

void Pipeline::fail_bad_value(std::uint32_t of, Recipe recipe, const MatrixView& view, const BadValue& bad) {
  const Entry& entry = catalog_.entries[of];
  auto at = view.origin;
  const auto last = static_cast<std::size_t>(entry.box.axes - 1);
  at[last] += bad.col;
  if (entry.box.axes > 1) at[last - 1] += bad.row;
  std::string index;
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis)
    index += fmt::format("{}{}", axis == 0 ? "" : ", ", at[axis]);
  fail(Status(Code::corrupted,
              fmt::format("{}, version {}: tensor '{}' at [{}] is NaN, Inf or beyond the range of {}; nothing was "
                          "committed: repair the weights and push again",
                          name_of(catalog_), version_, entry.tensor, index, to_string(recipe))));
}

SourceMatrix Pipeline::source_of(std::uint32_t index, const MatrixView& view) const {
  const Entry& entry = catalog_.entries[index];
  const auto element = static_cast<std::int64_t>(element_bytes(entry.source_type));
  const auto last = static_cast<std::size_t>(entry.box.axes - 1);
  const auto* base = reinterpret_cast<const std::byte*>(catalog_.regions[entry.region].address);
  return {base + byte_at(entry, view.origin),
          entry.source_type,
          view.rows,
          view.cols,
          row_stride(entry.strides_bytes, entry.box.axes) / element,
          entry.strides_bytes[last] / element};
}
void Pipeline::work(Worker& worker) {
  while (!stopped()) {
    const std::size_t index = next_batch_.fetch_add(1, std::memory_order_relaxed);
    if (index >= batches_.size()) return;
    const Batch& batch = batches_[index];
    if (batch.first >= first_straddling_) receive_amax();
    Slot& slot = free_slot(batch.as_it_is ? worker.direct : worker.scratch);
    std::uint64_t filled = 0;
    for (std::size_t chunk = batch.first; chunk < batch.end && !stopped(); ++chunk) {
      send_chunk(worker, chunks_[chunk], slot, filled);
      filled += scratch_bytes_of(chunks_[chunk]);
    }
  }
}

// Casts into the slot behind what it holds already, `filled` bytes.
void Pipeline::send_chunk(Worker& worker, const Chunk& chunk, Slot& slot, std::uint64_t filled) {
  const StepJob& job = jobs_[chunk.job];
  const TrainerStep& step = table_.steps[job.step];
  const Digest seed = digest_seed(version_, job.digest_key);
  for_each_matrix(chunk.box, step.frame, [&](const MatrixView& view) {
    if (stopped()) return;
    const auto start = Clock::now();
    const SourceMatrix source = source_of(step.entry, view);
    const MatrixView stored = stored_view(view, step.frame.axes, step.recipe);
    const DigestFrame frame = digest_frame(seed, stored_box(step.frame, step.recipe), stored, job.element_bytes);
    const auto pitch = static_cast<std::int64_t>(job.element_bytes) * stored.cols;
    const std::uint64_t offset = slot.offset + filled;
    const CastResult result = job.as_it_is
                                  ? inspect(source, frame)
                                  : cast(source, step.recipe, block_origin(view, step.box.axes),
                                         chunk_amax(worker, job, source, view), scratch_.get() + offset, pitch, frame);
    worker.cast_seconds += seconds_since(start);
    if (result.bad.found()) {
      fail_bad_value(step.entry, step.recipe, view, result.bad);
      return;
    }
    const auto bytes = static_cast<std::uint64_t>(pitch * view.rows);
    count(job.targets, bytes, result.digest);
    if (job.as_it_is) {
      const Entry& entry = catalog_.entries[step.entry];
      put_matrix(job.targets, step.frame, view, job.element_bytes, source_regions_[entry.region],
                 byte_at(entry, view.origin), row_stride(entry.strides_bytes, entry.box.axes), slot.puts);
    } else {
      put_matrix(job.targets, stored_box(step.frame, step.recipe), stored, job.element_bytes, scratch_region_, offset,
                 pitch, slot.puts);
      filled += bytes;
    }
  });
  if (!stopped()) signal_complete(job.targets);
}

// The amax of every whole block of the matrix: this trainer's part, and other trainers' where blocks straddle. A chunk
// has all that this trainer holds of a block, but of blocks that span an axis, which have been measured before.
std::span<float> Pipeline::chunk_amax(Worker& worker, const StepJob& job, const SourceMatrix& source,
                                      const MatrixView& view) {
  const TrainerStep& step = table_.steps[job.step];
  if (!has_scales(step.recipe)) return {};
  const BlockOrigin origin = block_origin(view, step.box.axes);
  const auto amax = std::span(worker.amax).first(amax_values(source, step.recipe, origin));
  const bool is_measured = spans_an_axis(step.recipe);
  if (!is_measured) (void)block_amax(source, step.recipe, origin, amax);  // the cast finds bad values again, by name
  BlockGrid& grid = grids_.at({step.entry, step.recipe});
  const Box blocks = blocks_touched_by(view, step.box.axes, step.recipe);
  for_each_block(blocks, grid.blocks, [&](std::size_t at, std::size_t running) {
    if (is_measured) amax[running] = grid.own[at];
    if (step.needs_amax) amax[running] = std::max(amax[running], grid.foreign[at]);
    if (!is_measured) grid.own[at] = amax[running];
  });
  if (has_tensor_scale(step.recipe)) amax.back() = tensor_amax(step.entry, view.origin);
  return amax;
}

// Of the matrix that begins at `origin`, or goes on there, and of all trainers once receive_amax() has returned.
float Pipeline::tensor_amax(std::uint32_t entry, const std::array<std::int64_t, kMaxAxes>& origin) const {
  const BlockGrid& grid = grids_.at({entry, Recipe::nvfp4_tensor_scale});
  auto at = origin;
  for (std::size_t axis = grid.blocks.axes > 2 ? grid.blocks.axes - 2U : 0U; axis < grid.blocks.axes; ++axis)
    at[axis] = 0;
  const std::size_t index = index_in(grid.blocks, at);
  return std::max(grid.own[index], grid.foreign[index]);
}

void Pipeline::count(const std::vector<Target>& targets, std::uint64_t bytes, Digest digest) {
  for (const Target& target : targets) {
    Covered& covered = *servers_[target.server]->signals[target.signal];
    covered.bytes += bytes;
    covered.digest += digest;
    bytes_done_.fetch_add(bytes, std::memory_order_relaxed);
  }
}

// One put where source and destination rows are gapless, else one per row.
void Pipeline::put_matrix(const std::vector<Target>& targets, const Box& frame, const MatrixView& view,
                          std::uint64_t element, RegionId region, std::uint64_t offset, std::int64_t pitch,
                          Tally& tally) {
  const auto row_bytes = static_cast<std::int64_t>(element) * view.cols;
  for (const Target& target : targets) {
    const ServerLink& link = *servers_[target.server];
    if (link.dropped) continue;
    const std::int64_t target_pitch = row_stride(target.strides, frame.axes);
    const bool gapless = view.rows == 1 || (pitch == row_bytes && target_pitch == row_bytes);
    const std::int64_t puts = gapless ? 1 : view.rows;
    const std::uint64_t start = target.offset + offset_in_frame(frame, target.strides, view.origin);
    for (std::int64_t index = 0; index < puts && !stopped(); ++index) {
      Put put{target.peer,
              region,
              offset + static_cast<std::uint64_t>(index * pitch),
              target.region,
              start + static_cast<std::uint64_t>(index * target_pitch),
              static_cast<std::uint64_t>(gapless ? row_bytes * view.rows : row_bytes),
              &tally};
      const Status status = fabric_.put(put, deadline_);
      if (status.ok()) continue;
      if (!link.dropped && status.code() != Code::unreachable) fail(status);
      break;
    }
  }
}

void Pipeline::send_scales(Worker& worker) {
  for (const ScaleJob& job : scale_jobs_) {
    Slot& slot = free_slot(worker.scratch);
    if (stopped()) return;
    const TrainerScaleStep& step = table_.scale_steps[job.step];
    const BlockGrid& grid = grids_.at({step.entry, step.recipe});
    const auto element = static_cast<std::int64_t>(scale_bytes(step.recipe));
    const auto amax = std::span(worker.amax).first(static_cast<std::size_t>(elements(step.blocks)));
    for_each_block(step.blocks, grid.blocks, [&](std::size_t at, std::size_t running) {
      amax[running] = std::max(grid.own[at], grid.foreign[at]);
    });
    const Digest seed = digest_seed(version_, job.digest_key);
    std::uint64_t filled = 0;
    for_each_matrix(step.blocks, step.frame, [&](const MatrixView& view) {
      const auto pitch = element * view.cols;
      const std::uint64_t offset = slot.offset + filled;
      const auto bytes = static_cast<std::uint64_t>(pitch * view.rows);
      const auto of_matrix = amax.subspan(filled / scale_bytes(step.recipe), bytes / scale_bytes(step.recipe));
      const float of_tensor = has_tensor_scale(step.recipe) ? tensor_amax(step.entry, view.origin) : 0;
      encode_scales(step.recipe, of_matrix, of_tensor, scratch_.get() + offset);
      count(
          job.targets, bytes,
          digest_rows(scratch_.get() + offset, static_cast<std::uint64_t>(view.rows), static_cast<std::uint64_t>(pitch),
                      pitch, digest_frame(seed, step.frame, view, scale_bytes(step.recipe))));
      put_matrix(job.targets, step.frame, view, scale_bytes(step.recipe), scratch_region_, offset, pitch, slot.puts);
      filled += bytes;
    });
    if (!stopped()) signal_complete(job.targets);
  }
}

// After the puts of chunks: whoever submits the last puts that a signal covers submits the signal behind them.
void Pipeline::signal_complete(const std::vector<Target>& targets, std::size_t chunks) {
  for (const Target& target : targets) {
    ServerLink& link = *servers_[target.server];
    Covered& covered = *link.signals[target.signal];
    if ((covered.waits_for -= chunks) != 0 || link.dropped) continue;
    const Signal signal{token_,    version_,      Role::trainer, catalog_.rank,
                        link.rank, target.signal, covered.bytes, covered.digest};
    const Status status = fabric_.signal(link.peer, encode(signal), &link.signalled, deadline_);
    if (!status.ok() && !link.dropped && status.code() != Code::unreachable) fail(status);
  }
}

void Pipeline::await_signals() {
  for (const auto& link : servers_) {
    if (!await(link->signalled, fmt::format("server {} to take the bytes of version {}", link->rank, version_))) return;
    const Status status = link->signalled.first_failure();
    if (link->dropped || status.ok()) continue;
    // A lost connection is the controller's to judge (PeerLost, Drop); anything else ends the update here.
    if (status.code() != Code::unreachable && status.code() != Code::aborted) fail(status);
  }
}

// A slot whose puts are complete. The first such one, so that few slots, warm in the cache, serve when puts are fast.
Pipeline::Slot& Pipeline::free_slot(Slots& slots) {
  const auto idle =
      std::find_if(slots.all.begin(), slots.all.end(), [](const auto& slot) { return slot->puts.outstanding() == 0; });
  if (idle == slots.all.end()) slots.next = (slots.next + 1) % slots.all.size();
  Slot& slot = idle == slots.all.end() ? *slots.all[slots.next] : **idle;
  if (slot.puts.outstanding() != 0 && !await(slot.puts, "earlier puts, which are not complete")) return slot;
  const Status status = slot.puts.failed() ? slot.puts.first_failure() : Status();
  if (status.code() == Code::refused) fail(status);  // the lease; lost connections show at the signal
  slot.puts.reset();
  return slot;
}

// False when the update was stopped meanwhile.
bool Pipeline::await(Tally& tally, const std::string& what) {
  while (tally.outstanding() != 0) {
    if (stopped()) return false;
    if (deadline_.passed()) {
      fail(Status(Code::timed_out, fmt::format("{}, version {}: waited {} ms for {}", name_of(catalog_), version_,
                                               config_.times.update_ms, what)));
      return false;
    }
    (void)tally.wait(Deadline::after(kPoll), what);
  }
  return !stopped();
}

// Until nothing is in flight. What a peer does not take within its death bound is cut off: true then.
bool Pipeline::drain() {
  const auto flying = [this] {
    std::uint64_t count = amax_sent_.outstanding() + (gpu_ ? gpu_->flying() : 0);
    for (const auto& link : servers_) count += link->signalled.outstanding();
    for (const auto& worker : workers_) {
      for (const Slots* slots : {&worker->scratch, &worker->direct}) {
        for (const auto& slot : slots->all) count += slot->puts.outstanding();
      }
    }
    return count;
  };
  const Deadline patience = Deadline::after(Milliseconds(config_.times.death_busy_ms));
  while (flying() != 0 && !patience.passed()) std::this_thread::sleep_for(Milliseconds(1));
  if (flying() == 0) return false;
  for (const auto& link : servers_) fabric_.disconnect(link->peer);
  for (const Outgoing& out : outgoing_) fabric_.disconnect(out.peer);
  while (flying() != 0) std::this_thread::sleep_for(Milliseconds(1));
  return true;
}

}  // namespace weightcast

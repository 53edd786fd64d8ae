#include "plugin/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "plugin/extent.h"

namespace weightcast {
namespace {

constexpr std::size_t kPage = 4096;
constexpr Milliseconds kPoll{50};  // how often a blocked stage looks whether it should stop

Box blocks_of(const Box& box) {
  Box blocks = box;
  for (int axis = std::max(0, box.axes - 2); axis < box.axes; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    blocks.offset[a] = box.offset[a] / kBlock;
    blocks.extent[a] = weightcast::blocks_of(box.offset[a] + box.extent[a]) - blocks.offset[a];
  }
  return blocks;
}

// The matrix of blocks that a matrix of elements touches, in the block coordinates of the same tensor.
Box blocks_touched_by(const MatrixView& view, int axes) {
  Box box;
  box.axes = static_cast<std::uint8_t>(axes);
  box.offset = view.origin;
  box.extent.fill(1);
  const auto last = static_cast<std::size_t>(axes - 1);
  box.extent[last] = view.cols;
  if (axes > 1) box.extent[last - 1] = view.rows;
  return blocks_of(box);
}

std::size_t index_in(const Box& grid, const std::array<std::int64_t, kMaxAxes>& at) {
  std::int64_t index = 0;
  for (std::size_t axis = 0; axis < grid.axes; ++axis) index = index * grid.extent[axis] + at[axis] - grid.offset[axis];
  return static_cast<std::size_t>(index);
}

// visit(index in the grid, running index) for each block of `blocks`, row-major.
template <class Visit>
void for_each_block(const Box& blocks, const Box& grid, Visit&& visit) {
  std::size_t running = 0;
  for_each_matrix(blocks, grid, [&](const MatrixView& view) {
    auto at = view.origin;
    const auto last = static_cast<std::size_t>(blocks.axes - 1);
    for (std::int64_t row = 0; row < view.rows; ++row) {
      if (blocks.axes > 1) at[last - 1] = view.origin[last - 1] + row;
      const std::size_t start = index_in(grid, at);
      for (std::int64_t col = 0; col < view.cols; ++col) visit(start + static_cast<std::size_t>(col), running++);
    }
  });
}

BlockOrigin block_origin(const MatrixView& view, int axes) {
  const auto last = static_cast<std::size_t>(axes - 1);
  return {axes > 1 ? view.origin[last - 1] : 0, view.origin[last]};
}

}  // namespace

void Pipeline::FreeScratch::operator()(std::byte* memory) const noexcept { std::free(memory); }

Pipeline::Pipeline(const Config& config, Fabric& fabric, const Catalog& catalog, std::vector<RegionId> regions)
    : config_(config),
      fabric_(fabric),
      catalog_(catalog),
      source_regions_(std::move(regions)),
      team_(config.performance.cast_threads) {
  const std::uint64_t bytes = (config.performance.scratch_bytes + kPage - 1) / kPage * kPage;
  scratch_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, bytes)));
  if (!scratch_) {
    throw Error(Code::unavailable, fmt::format("{}: no memory for performance.scratch_bytes = {}", name_of(catalog_),
                                               config.performance.scratch_bytes));
  }
  std::memset(scratch_.get(), 0, bytes);
  scratch_region_ = fabric_.register_memory({scratch_.get(), bytes, MemoryKind::host});
}

Pipeline::~Pipeline() { fabric_.release(scratch_region_); }

// ---- set-up ----

void Pipeline::adopt(TrainerTable table, const Routes& routes) {
  table_ = std::move(table);
  jobs_.clear();
  chunks_.clear();
  scale_jobs_.clear();
  servers_.clear();
  grids_.clear();
  for (const auto& [rank, route] : routes.servers) {
    auto link = std::make_unique<ServerLink>();
    link->rank = rank;
    link->peer = route.peer;
    servers_.push_back(std::move(link));
  }
  for (std::size_t index = 0; index < table_.steps.size(); ++index) {
    const TrainerStep& item = table_.steps[index];
    const Entry& entry = catalog_.entries[item.step.entry];
    StepJob job{index, element_bytes(item.step.recipe), digest_key(entry.tensor, false), false, {}};
    const int last = item.step.box.axes - 1;
    const std::int64_t pitch = row_stride(entry.strides_bytes, entry.box.axes);
    job.as_it_is = entry.source_type == SourceType::bf16 && item.step.recipe == Recipe::bf16 &&
                   entry.strides_bytes[static_cast<std::size_t>(last)] == 2 && pitch >= 0;
    for (const TargetExtent& extent : item.targets) job.targets.push_back(resolve(extent, routes));
    for (const Target& target : job.targets) ++servers_[target.server]->steps;
    jobs_.push_back(std::move(job));
  }
  for (std::size_t index = 0; index < table_.scale_steps.size(); ++index) {
    const TrainerScaleStep& item = table_.scale_steps[index];
    ScaleJob job{index, digest_key(catalog_.entries[item.step.entry].tensor, true), {}};
    for (const TargetExtent& extent : item.targets) job.targets.push_back(resolve(extent, routes));
    for (const Target& target : job.targets) ++servers_[target.server]->steps;
    scale_jobs_.push_back(std::move(job));
  }
  prepare_jobs();
  prepare_amax(routes);
}

Pipeline::Target Pipeline::resolve(const TargetExtent& extent, const Routes& routes) {
  const auto route = routes.servers.find(extent.server);
  if (route == routes.servers.end() || extent.region >= route->second.placements.size()) {
    throw Error(Code::internal, fmt::format("{}: its table names region {} of server {}, which it is not connected to",
                                            name_of(catalog_), extent.region, extent.server));
  }
  const Placement& placement = route->second.placements[extent.region];
  return {static_cast<std::uint32_t>(std::distance(routes.servers.begin(), route)), route->second.peer,
          placement.card_region, placement.byte_offset + extent.byte_offset, extent.strides_bytes};
}

// Cuts the steps into chunks, those without foreign amax first, and the scratch into slots that hold any of them.
void Pipeline::prepare_jobs() {
  std::uint64_t slot_bytes = 8;
  std::uint64_t slot_uses = scale_jobs_.size();
  std::size_t most_blocks = 1;
  for (const bool straddling : {false, true}) {
    if (straddling) first_straddling_ = chunks_.size();
    for (std::size_t job = 0; job < jobs_.size(); ++job) {
      const Step& step = table_.steps[jobs_[job].step].step;
      if (step.needs_amax != straddling) continue;
      for (const Box& box : chunks_of(step, table_.chunk_bytes)) {
        if (!jobs_[job].as_it_is) {
          slot_bytes = std::max(slot_bytes, static_cast<std::uint64_t>(elements(box)) * jobs_[job].element_bytes);
          ++slot_uses;
        }
        most_blocks = std::max(most_blocks, static_cast<std::size_t>(elements(blocks_of(box))));
        chunks_.push_back({job, box});
      }
      if (!has_scales(step.recipe) || grids_.contains(step.entry)) continue;
      BlockGrid& grid = grids_[step.entry];
      grid.blocks = blocks_of(catalog_.entries[step.entry].box);
      grid.own.assign(static_cast<std::size_t>(elements(grid.blocks)), 0.0F);
      grid.foreign = grid.own;
    }
  }
  for (const TrainerScaleStep& item : table_.scale_steps) {
    slot_bytes = std::max(slot_bytes, static_cast<std::uint64_t>(elements(item.step.blocks)) * sizeof(float));
  }
  slot_bytes = (slot_bytes + 63) / 64 * 64;
  std::uint64_t slots = config_.performance.scratch_bytes / slot_bytes;
  if (slots < 2 * team_.size()) {
    throw Error(Code::invalid_argument,
                fmt::format("{}: performance.scratch_bytes = {} holds {} chunks of {} bytes; {} are needed (two for "
                            "each of performance.cast_threads): set it to {} or more",
                            name_of(catalog_), config_.performance.scratch_bytes, slots, slot_bytes, 2 * team_.size(),
                            2 * team_.size() * slot_bytes));
  }
  slots = std::min(slots, std::max<std::uint64_t>(2 * team_.size(), slot_uses));
  workers_.clear();
  for (std::size_t member = 0; member < team_.size(); ++member) {
    auto worker = std::make_unique<Worker>();
    worker->amax.resize(most_blocks);
    for (std::uint64_t slot = member; slot < slots; slot += team_.size()) {
      worker->slots.push_back(std::make_unique<Slot>());
      worker->slots.back()->offset = slot * slot_bytes;
    }
    workers_.push_back(std::move(worker));
  }
}

void Pipeline::prepare_amax(const Routes& routes) {
  const auto values_of = [](const AmaxExchange& exchange) {
    std::size_t values = 0;
    for (const AmaxRun& run : exchange.runs) values += static_cast<std::size_t>(elements(run.blocks));
    return values;
  };
  outgoing_.clear();
  for (const AmaxExchange& exchange : table_.amax_out) {
    const std::size_t values = values_of(exchange);
    outgoing_.push_back({routes.trainers.at(exchange.to).peer,
                         std::vector<std::byte>(kAmaxHeaderBytes + values * sizeof(float)), values});
    if (outgoing_.back().message.size() > Fabric::kMaxMessageBytes) {
      throw Error(Code::invalid_argument,
                  fmt::format("{} shares {} blocks with trainer {}: more than one message holds", name_of(catalog_),
                              values, exchange.to));
    }
  }
  const std::scoped_lock lock(amax_mutex_);
  incoming_.clear();
  for (const AmaxExchange& exchange : table_.amax_in) {
    incoming_.push_back({0, std::vector<std::byte>(values_of(exchange) * sizeof(float))});
  }
}

// ---- one update ----

MoveResult Pipeline::move(std::uint64_t version, std::uint64_t token) {
  const auto start = Clock::now();
  reset_for(version, token);
  fabric_.set_active(true);
  send_amax();
  const std::function<void(std::size_t)> part = [this](std::size_t member) { work(*workers_[member]); };
  team_.run(part);
  if (!stopped()) send_scales(*workers_[0]);
  if (!stopped()) send_signals();
  MoveResult result;
  result.cut_off = drain();
  fabric_.set_active(false);
  {
    const std::scoped_lock lock(failure_mutex_);
    result.status = failure_;
  }
  result.seconds = seconds_since(start);
  for (const auto& link : servers_) {
    if (!link->dropped) result.bytes += link->bytes;
  }
  for (const auto& worker : workers_) result.cast_seconds += worker->cast_seconds;
  return result;
}

void Pipeline::reset_for(std::uint64_t version, std::uint64_t token) {
  version_ = version;
  deadline_ = Deadline::after(Milliseconds(config_.times.update_ms));
  next_chunk_ = 0;
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
  for (auto& [entry, grid] : grids_) {
    std::fill(grid.own.begin(), grid.own.end(), 0.0F);
    std::fill(grid.foreign.begin(), grid.foreign.end(), 0.0F);
  }
  for (const auto& link : servers_) {
    link->bytes = 0;
    link->digest = 0;
    link->signalled.reset();
  }
  for (const auto& worker : workers_) {
    worker->cast_seconds = 0;
    worker->direct.reset();
    for (const auto& slot : worker->slots) slot->puts.reset();
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
  for (const auto& link : servers_) {
    if (link->rank != server || link->dropped.exchange(true)) continue;
    fabric_.disconnect(link->peer);
  }
}

void Pipeline::fail_bad_value(const Step& step, const MatrixView& view, const BadValue& bad) {
  const Entry& entry = catalog_.entries[step.entry];
  auto at = view.origin;
  const auto last = static_cast<std::size_t>(step.box.axes - 1);
  at[last] += bad.col;
  if (step.box.axes > 1) at[last - 1] += bad.row;
  std::string index;
  for (std::size_t axis = 0; axis < step.box.axes; ++axis)
    index += fmt::format("{}{}", axis == 0 ? "" : ", ", at[axis]);
  fail(Status(Code::corrupted,
              fmt::format("{}, version {}: tensor '{}' at [{}] is NaN, Inf or beyond the range of {}; nothing was "
                          "committed: repair the weights and push again",
                          name_of(catalog_), version_, entry.tensor, index, to_string(step.recipe))));
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

void Pipeline::send_amax() {
  for (std::size_t index = 0; index < outgoing_.size() && !stopped(); ++index) {
    Outgoing& out = outgoing_[index];
    const AmaxExchange& exchange = table_.amax_out[index];
    encode_amax_header(out.message, token_, exchange.from, exchange.to);
    auto* values = reinterpret_cast<float*>(out.message.data() + kAmaxHeaderBytes);
    std::size_t done = 0;
    for (const AmaxRun& run : exchange.runs) {
      const Entry& entry = catalog_.entries[run.from_entry];
      Box elements_of_run = run.blocks;
      for (int axis = std::max(0, run.blocks.axes - 2); axis < run.blocks.axes; ++axis) {
        const auto a = static_cast<std::size_t>(axis);
        elements_of_run.offset[a] *= kBlock;
        elements_of_run.extent[a] *= kBlock;
      }
      const auto part = intersect(elements_of_run, entry.box);
      if (!part || blocks_of(*part) != run.blocks) {
        fail(Status(Code::internal,
                    fmt::format("{}: planned to share blocks {} of '{}', holds only {}", name_of(catalog_),
                                to_string(run.blocks), entry.tensor, to_string(entry.box))));
        return;
      }
      for_each_matrix(*part, entry.box, [&](const MatrixView& view) {
        const SourceMatrix source = source_of(run.from_entry, view);
        const BlockOrigin origin = block_origin(view, entry.box.axes);
        const std::size_t blocks = blocks_touched(source, origin);
        const BadValue bad = block_amax(source, origin, {values + done, blocks});
        if (bad.found()) {
          Step step;
          step.entry = run.from_entry;
          step.box = entry.box;
          step.recipe = Recipe::fp8_e4m3_128x128_fp32;
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
    for (const AmaxRun& run : table_.amax_in[index].runs) {
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

void Pipeline::work(Worker& worker) {
  while (!stopped()) {
    const std::size_t index = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (index >= chunks_.size()) return;
    if (index >= first_straddling_) receive_amax();
    if (!stopped()) send_chunk(worker, chunks_[index]);
  }
}

void Pipeline::send_chunk(Worker& worker, const Chunk& chunk) {
  const StepJob& job = jobs_[chunk.job];
  const Step& step = table_.steps[job.step].step;
  Slot* slot = job.as_it_is ? nullptr : &free_slot(worker);
  if (stopped()) return;
  const Digest seed = digest_seed(version_, job.digest_key);
  std::uint64_t filled = 0;
  for_each_matrix(chunk.box, step.frame, [&](const MatrixView& view) {
    if (stopped()) return;
    const auto start = Clock::now();
    const SourceMatrix source = source_of(step.entry, view);
    const DigestFrame frame = digest_frame(seed, step.frame, view, job.element_bytes);
    const auto pitch = static_cast<std::int64_t>(job.element_bytes) * view.cols;
    const std::uint64_t offset = slot == nullptr ? 0 : slot->offset + filled;
    const CastResult result = slot == nullptr
                                  ? inspect(source, frame)
                                  : cast(source, step.recipe, block_origin(view, step.box.axes),
                                         chunk_amax(worker, job, source, view), scratch_.get() + offset, pitch, frame);
    worker.cast_seconds += seconds_since(start);
    if (result.bad.found()) {
      fail_bad_value(step, view, result.bad);
      return;
    }
    const auto bytes = static_cast<std::uint64_t>(pitch * view.rows);
    count(job.targets, bytes, result.digest);
    if (slot == nullptr) {
      const Entry& entry = catalog_.entries[step.entry];
      put_matrix(job.targets, step.frame, view, job.element_bytes, source_regions_[entry.region],
                 byte_at(entry, view.origin), row_stride(entry.strides_bytes, entry.box.axes), worker.direct);
    } else {
      put_matrix(job.targets, step.frame, view, job.element_bytes, scratch_region_, offset, pitch, slot->puts);
      filled += bytes;
    }
  });
}

// The amax of every whole block of the matrix: this trainer's part, and other trainers' where blocks straddle.
std::span<float> Pipeline::chunk_amax(Worker& worker, const StepJob& job, const SourceMatrix& source,
                                      const MatrixView& view) {
  const Step& step = table_.steps[job.step].step;
  if (!has_scales(step.recipe)) return {};
  const BlockOrigin origin = block_origin(view, step.box.axes);
  const auto amax = std::span(worker.amax).first(blocks_touched(source, origin));
  (void)block_amax(source, origin, amax);  // a bad value is found again, and named, by the cast
  BlockGrid& grid = grids_.at(step.entry);
  for_each_block(blocks_touched_by(view, step.box.axes), grid.blocks, [&](std::size_t at, std::size_t running) {
    if (step.needs_amax) amax[running] = std::max(amax[running], grid.foreign[at]);
    grid.own[at] = amax[running];
  });
  return amax;
}

void Pipeline::count(const std::vector<Target>& targets, std::uint64_t bytes, Digest digest) {
  for (const Target& target : targets) {
    servers_[target.server]->bytes += bytes;
    servers_[target.server]->digest += digest;
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
    if (link.dropped || link.failed) continue;
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
    Slot& slot = free_slot(worker);
    if (stopped()) return;
    const ScaleStep& step = table_.scale_steps[job.step].step;
    const BlockGrid& grid = grids_.at(step.entry);
    auto* values = reinterpret_cast<float*>(scratch_.get() + slot.offset);
    for_each_block(step.blocks, grid.blocks,
                   [&](std::size_t at, std::size_t running) { values[running] = scale_of_amax(grid.own[at]); });
    const Digest seed = digest_seed(version_, job.digest_key);
    std::uint64_t filled = 0;
    for_each_matrix(step.blocks, step.frame, [&](const MatrixView& view) {
      const auto pitch = static_cast<std::int64_t>(sizeof(float)) * view.cols;
      const std::uint64_t offset = slot.offset + filled;
      const auto bytes = static_cast<std::uint64_t>(pitch * view.rows);
      count(job.targets, bytes,
            digest_rows(scratch_.get() + offset, static_cast<std::uint64_t>(view.rows),
                        static_cast<std::uint64_t>(pitch), pitch, digest_frame(seed, step.frame, view, sizeof(float))));
      put_matrix(job.targets, step.frame, view, sizeof(float), scratch_region_, offset, pitch, slot.puts);
      filled += bytes;
    });
  }
}

void Pipeline::send_signals() {
  for (const auto& link : servers_) {
    if (link->dropped || link->steps == 0) continue;
    const Signal signal{token_, version_, catalog_.rank, link->rank, link->bytes, link->steps, link->digest};
    const Status status = fabric_.signal(link->peer, encode(signal), &link->signalled, deadline_);
    if (!status.ok() && !link->dropped && status.code() != Code::unreachable) fail(status);
  }
  for (const auto& link : servers_) {
    if (!await(link->signalled, fmt::format("server {} to take the bytes of version {}", link->rank, version_))) return;
    const Status status = link->signalled.first_failure();
    if (link->dropped || status.ok()) continue;
    // A lost connection is the controller's to judge (PeerLost, Drop); anything else ends the update here.
    if (status.code() != Code::unreachable && status.code() != Code::aborted) fail(status);
  }
}

// A slot whose puts are complete. The first such one, so that few slots, warm in the cache, serve when puts are fast.
Pipeline::Slot& Pipeline::free_slot(Worker& worker) {
  const auto idle = std::find_if(worker.slots.begin(), worker.slots.end(),
                                 [](const auto& slot) { return slot->puts.outstanding() == 0; });
  if (idle == worker.slots.end()) worker.next_slot = (worker.next_slot + 1) % worker.slots.size();
  Slot& slot = idle == worker.slots.end() ? *worker.slots[worker.next_slot] : **idle;
  if (slot.puts.outstanding() != 0 && !await(slot.puts, "a scratch slot: its puts are not complete")) return slot;
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
    std::uint64_t count = amax_sent_.outstanding();
    for (const auto& link : servers_) count += link->signalled.outstanding();
    for (const auto& worker : workers_) {
      count += worker->direct.outstanding();
      for (const auto& slot : worker->slots) count += slot->puts.outstanding();
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

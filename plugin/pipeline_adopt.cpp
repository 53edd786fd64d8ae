// What an update needs, prepared once per table: jobs, chunks, slots, grids and messages.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "plugin/block_grid.h"
#include "plugin/extent.h"
#include "plugin/gpu_sender.h"
#include "plugin/pipeline.h"

namespace weightcast {

void Pipeline::adopt(TrainerTable table, const Routes& routes) {
  table_ = std::move(table);
  jobs_.clear();
  chunks_.clear();
  scale_jobs_.clear();
  exchanged_.clear();
  grids_.clear();
  {
    const std::scoped_lock lock(servers_mutex_);
    servers_.clear();
    for (const auto& [rank, route] : routes.servers) {
      auto link = std::make_unique<ServerLink>();
      link->rank = rank;
      link->peer = route.peer;
      servers_.push_back(std::move(link));
    }
  }
  for (std::size_t index = 0; index < table_.steps.size(); ++index) {
    const TrainerStep& item = table_.steps[index];
    const Entry& entry = catalog_.entries[item.entry];
    StepJob job{index, element_bytes(item.recipe), digest_key(entry.tensor, false), false, {}};
    const int last = item.box.axes - 1;
    const std::int64_t pitch = row_stride(entry.strides_bytes, entry.box.axes);
    job.as_it_is = entry.source_type == SourceType::bf16 && item.recipe == Recipe::bf16 &&
                   entry.strides_bytes[static_cast<std::size_t>(last)] == 2 && pitch >= 0;
    for (const TargetExtent& extent : item.targets) job.targets.push_back(resolve(extent, routes));
    jobs_.push_back(std::move(job));
  }
  for (std::size_t index = 0; index < table_.scale_steps.size(); ++index) {
    const TrainerScaleStep& item = table_.scale_steps[index];
    ScaleJob job{index, digest_key(catalog_.entries[item.entry].tensor, true), {}};
    for (const TargetExtent& extent : item.targets) job.targets.push_back(resolve(extent, routes));
    scale_jobs_.push_back(std::move(job));
  }
  prepare_signals();
  prepare_jobs();
  prepare_amax(routes);
  if (gpu_) gpu_->adopt();
}

// Which signal covers which target, and how much each waits for.
void Pipeline::prepare_signals() {
  std::vector<std::vector<Target*>> targets(servers_.size());
  std::vector<std::vector<std::uint64_t>> bytes(servers_.size());
  const auto add = [&](std::vector<Target>& all, std::uint64_t of_each) {
    for (Target& target : all) {
      targets[target.server].push_back(&target);
      bytes[target.server].push_back(of_each);
    }
  };
  for (StepJob& job : jobs_) add(job.targets, value_bytes(table_.steps[job.step].box, table_.steps[job.step].recipe));
  for (ScaleJob& job : scale_jobs_) {
    const TrainerScaleStep& item = table_.scale_steps[job.step];
    add(job.targets, static_cast<std::uint64_t>(elements(item.blocks)) * scale_bytes(item.recipe));
  }
  for (std::size_t server = 0; server < servers_.size(); ++server) {
    auto target = targets[server].begin();
    auto& signals = servers_[server]->signals;
    for (const SignalExtent& extent : signals_of(bytes[server])) {
      for (std::size_t piece = 0; piece < extent.pieces; ++piece) {
        (*target++)->signal = static_cast<std::uint32_t>(signals.size());
      }
      signals.push_back(std::make_unique<Covered>());
    }
  }
  for (const StepJob& job : jobs_) {
    for (const Target& to : job.targets) {
      servers_[to.server]->signals[to.signal]->chunks += table_.steps[job.step].chunks;
    }
  }
  for (const ScaleJob& job : scale_jobs_) {
    for (const Target& to : job.targets) ++servers_[to.server]->signals[to.signal]->chunks;
  }
}

Pipeline::Target Pipeline::resolve(const TargetExtent& extent, const Routes& routes) {
  const auto route = routes.servers.find(extent.server);
  if (route == routes.servers.end() || extent.region >= route->second.placements.size()) {
    throw Error(Code::internal, fmt::format("{}: its table names region {} of server {}, which it is not connected to",
                                            name_of(catalog_), extent.region, extent.server));
  }
  const Placement& placement = route->second.placements[extent.region];
  return {static_cast<std::uint32_t>(std::distance(routes.servers.begin(), route)),
          0,
          route->second.peer,
          placement.card_region,
          placement.byte_offset + extent.byte_offset,
          extent.strides_bytes};
}

// Cuts the steps into chunks, those without foreign amax first.
void Pipeline::prepare_jobs() {
  for (const bool straddling : {false, true}) {
    if (straddling) first_straddling_ = chunks_.size();
    for (std::size_t job = 0; job < jobs_.size(); ++job) {
      const TrainerStep& step = table_.steps[jobs_[job].step];
      if (step.needs_amax != straddling) continue;
      for (const Box& box : chunks_of(step.box, step.frame, step.recipe, table_.chunk_bytes)) {
        chunks_.push_back({job, box});
      }
      if (has_scales(step.recipe)) add_grid(step.entry, step.recipe);
      if (has_tensor_scale(step.recipe)) add_grid(step.entry, Recipe::nvfp4_tensor_scale);
    }
  }
  prepare_batches();
  prepare_spanning();
  prepare_workers();
}

void Pipeline::add_grid(std::uint32_t entry, Recipe recipe) {
  const auto [found, is_new] = grids_.try_emplace({entry, recipe});
  if (!is_new) return;
  BlockGrid& grid = found->second;
  grid.blocks = blocks_touched(catalog_.entries[entry].box, recipe);
  grid.own.assign(static_cast<std::size_t>(elements(grid.blocks)), 0.0F);
  grid.foreign = grid.own;
}

// Also of what only others cast: their replicas ask this trainer for its maxima.
void Pipeline::prepare_spanning() {
  constexpr std::uint64_t kBytes = 1 * MiB;  // enough to share evenly, and to read in long runs
  for (const AmaxMessage& message : table_.amax_out) {
    for (const AmaxPart& part : message.parts) {
      if (spans_an_axis(part.recipe)) add_grid(part.from_entry, part.recipe);
    }
  }
  spanning_.clear();
  for (const auto& [key, grid] : grids_) {
    if (!spans_an_axis(key.second)) continue;
    const Entry& entry = catalog_.entries[key.first];
    for_each_matrix(entry.box, entry.box, [&, of = key](const MatrixView& matrix) {
      const std::uint64_t row_bytes = static_cast<std::uint64_t>(matrix.cols) * element_bytes(entry.source_type);
      const auto rows_at_once = static_cast<std::int64_t>(std::max<std::uint64_t>(1, kBytes / row_bytes));
      for (std::int64_t row = 0; row < matrix.rows; row += rows_at_once) {
        MatrixView view = matrix;
        view.rows = std::min(rows_at_once, matrix.rows - row);
        view.row += row;
        if (entry.box.axes > 1) view.origin[static_cast<std::size_t>(entry.box.axes - 2)] += row;
        spanning_.push_back({of, view});
      }
    });
  }
}

// Rounded up to lines of the cache, so that no two chunks share one.
std::uint64_t Pipeline::scratch_bytes_of(const Chunk& chunk) const {
  return (value_bytes(chunk.box, table_.steps[jobs_[chunk.job].step].recipe) + 63) / 64 * 64;
}

void Pipeline::prepare_batches() {
  batches_.clear();
  for (std::size_t index = 0; index < chunks_.size(); ++index) {
    const bool as_it_is = jobs_[chunks_[index].job].as_it_is;
    const std::uint64_t bytes = scratch_bytes_of(chunks_[index]);
    const bool fits = !batches_.empty() && index != first_straddling_ && batches_.back().as_it_is == as_it_is &&
                      batches_.back().bytes + bytes <= table_.chunk_bytes;
    if (!fits) batches_.push_back({index, index, 0, as_it_is});
    batches_.back().end = index + 1;
    batches_.back().bytes += bytes;
  }
}

// Shares the scratch out as slots that hold any batch, and any scale step.
void Pipeline::prepare_workers() {
  std::int64_t most_blocks = 1;
  for (const Chunk& chunk : chunks_) {
    const Recipe recipe = table_.steps[jobs_[chunk.job].step].recipe;
    if (has_scales(recipe)) most_blocks = std::max(most_blocks, elements(blocks_touched(chunk.box, recipe)));
  }
  for (const Spanning& rows : spanning_) most_blocks = std::max(most_blocks, rows.view.rows);
  for (const TrainerScaleStep& item : table_.scale_steps) most_blocks = std::max(most_blocks, elements(item.blocks));
  std::uint64_t slot_bytes = 8;
  std::uint64_t slot_uses = scale_jobs_.size();
  for (const Batch& batch : batches_) {
    if (batch.as_it_is) continue;
    slot_bytes = std::max(slot_bytes, batch.bytes);
    ++slot_uses;
  }
  for (const TrainerScaleStep& item : table_.scale_steps) {
    slot_bytes = std::max(slot_bytes, static_cast<std::uint64_t>(elements(item.blocks)) * scale_bytes(item.recipe));
  }
  slot_bytes = (slot_bytes + 63) / 64 * 64;
  std::uint64_t slots = config_.performance.scratch_bytes / slot_bytes;
  // As many threads as were asked for, or, where nobody asked, as many as the scratch keeps busy.
  const bool asked = config_.performance.threads != 0;
  const std::uint64_t workers = asked ? team_.size() : std::clamp<std::uint64_t>(slots / 2, 1, team_.size());
  if (slots < 2 * workers) {
    throw Error(Code::invalid_argument,
                fmt::format("{}: performance.scratch_bytes = {} holds {} chunks of {} bytes; {} are needed (two for "
                            "each thread that casts): set it to {} or more",
                            name_of(catalog_), config_.performance.scratch_bytes, slots, slot_bytes, 2 * workers,
                            2 * workers * slot_bytes));
  }
  slots = std::min(slots, std::max(2 * workers, slot_uses));
  // What is put from where it stands: enough to keep the network busy, not more than stays in the cache.
  const std::uint64_t turns = std::clamp<std::uint64_t>(16 * MiB / table_.chunk_bytes, 4, 256);
  workers_.clear();
  for (std::uint64_t member = 0; member < workers; ++member) {
    auto worker = std::make_unique<Worker>();
    worker->amax.resize(static_cast<std::size_t>(most_blocks) + 1);  // and of the tensor
    for (std::uint64_t slot = member; slot < slots; slot += workers) {
      worker->scratch.all.push_back(std::make_unique<Slot>());
      worker->scratch.all.back()->offset = slot * slot_bytes;
    }
    for (std::uint64_t turn = 0; turn < turns; ++turn) worker->direct.all.push_back(std::make_unique<Slot>());
    workers_.push_back(std::move(worker));
  }
}

void Pipeline::prepare_amax(const Routes& routes) {
  const auto values_of = [](const AmaxMessage& message) {
    std::size_t values = 0;
    for (const AmaxPart& run : message.parts) values += static_cast<std::size_t>(elements(run.blocks));
    return values;
  };
  outgoing_.clear();
  for (const AmaxMessage& message : table_.amax_out) {
    for (const AmaxPart& run : message.parts) (void)shared_elements(run);  // throws here, not inside an update
    const std::size_t values = values_of(message);
    outgoing_.push_back({routes.trainers.at(message.to).peer,
                         std::vector<std::byte>(kAmaxHeaderBytes + values * sizeof(float)), values});
    if (outgoing_.back().message.size() > Fabric::kMaxMessageBytes) {
      throw Error(Code::invalid_argument,
                  fmt::format("{} shares {} blocks with trainer {}: more than one message holds", name_of(catalog_),
                              values, message.to));
    }
  }
  const std::scoped_lock lock(amax_mutex_);
  incoming_.clear();
  for (const AmaxMessage& message : table_.amax_in) {
    incoming_.push_back({0, std::vector<std::byte>(values_of(message) * sizeof(float))});
    for (const AmaxPart& run : message.parts) grids_.at({run.to_entry, run.recipe}).is_exchanged = true;
  }
  for (auto& item : grids_) {
    if (item.second.is_exchanged) exchanged_.push_back(&item);
  }
}

}  // namespace weightcast

// What a kernel of a GPU's sender stores into other GPUs: into those whose memory is mapped into this process.
#include <fmt/format.h>

#include <algorithm>

#include "plugin/gpu_sender.h"

namespace weightcast {
namespace {

// Blocks that store. Each has 16 KiB on the way, so that all have 2 MiB: more than a link of 450 GB/s holds at a
// latency of microseconds. On an H200 they are one of up to eight in every multiprocessor: casts go on beside them.
constexpr unsigned kStoringBlocks = 128;

}  // namespace

// The servers whose memory, or some of it, is mapped into this process.
void GpuSender::find_stored_to() {
  stored_to_.clear();
  const auto add = [this](const Pipeline::Target& target) {
    const bool is_known = std::find(stored_to_.begin(), stored_to_.end(), target.server) != stored_to_.end();
    if (is_known || stored_to_.size() == GpuCopy::kGroups) return;
    if (pipeline_.fabric_.mapped(target.peer, target.region).kind == MemoryKind::cuda) {
      stored_to_.push_back(target.server);
    }
  };
  for (const Pipeline::StepJob& job : pipeline_.jobs_) std::for_each(job.targets.begin(), job.targets.end(), add);
  for (const Pipeline::ScaleJob& job : pipeline_.scale_jobs_) {
    std::for_each(job.targets.begin(), job.targets.end(), add);
  }
}

std::size_t GpuSender::group_of(const ByteRun& run) const {
  return static_cast<std::size_t>(std::find(stored_to_.begin(), stored_to_.end(), run.server) - stored_to_.begin());
}

std::byte* GpuSender::mapped_target(const ByteRun& run) const {
  if (group_of(run) == stored_to_.size()) return nullptr;
  const MemorySpan there = pipeline_.fabric_.mapped(run.peer, run.to_region);
  const bool holds = there.kind == MemoryKind::cuda && run.to <= there.bytes && run.bytes <= there.bytes - run.to;
  return holds ? there.address + run.to : nullptr;
}

// Of runs that have a mapped_target(), but for those to servers that were disconnected since.
std::optional<GpuCopy> GpuSender::stores_of(const std::vector<ByteRun>& runs,
                                            const std::function<const std::byte*(const ByteRun&)>& source) const {
  std::vector<GpuCopyJob> jobs;
  jobs.reserve(runs.size());
  for (const ByteRun& run : runs) {
    std::byte* const to = mapped_target(run);
    if (to != nullptr) jobs.push_back({source(run), to, run.bytes, static_cast<std::uint32_t>(group_of(run))});
  }
  if (jobs.empty()) return std::nullopt;
  return GpuCopy(jobs);
}

// Likewise; empty where there is nothing to copy.
std::vector<CudaCopies> GpuSender::copies_of(const std::vector<ByteRun>& runs) const {
  std::vector<CudaCopies> copies;
  for (const ByteRun& run : runs) {
    std::byte* const to = mapped_target(run);
    if (to == nullptr) continue;
    copies.resize(stored_to_.size());
    copies[group_of(run)].add(to, pipeline_.fabric_.memory(run.from_region).address + run.from, run.bytes);
  }
  return copies;
}

// ---- one version ----

// What is launched runs to its end, for servers too that are dropped meanwhile: as puts do that were posted.
bool GpuSender::may_store() {
  if (pipeline_.fabric_.lease_holds()) return true;
  pipeline_.fail(Status(Code::refused, fmt::format("{}, version {}: stores to servers' GPUs not made: the lease has "
                                                   "run out, the controller has not been heard in time",
                                                   name_of(pipeline_.catalog_), pipeline_.version_)));
  return false;
}

bool GpuSender::is_dropped(std::size_t group) const { return pipeline_.servers_[stored_to_[group]]->dropped; }

void GpuSender::store(const GpuCopy& stores, const CudaStream& stream) {
  std::uint64_t left_out = 0;
  for (std::size_t group = 0; group < stored_to_.size(); ++group) {
    if (is_dropped(group)) left_out |= std::uint64_t{1} << group;
  }
  stores.launch(stream, kStoringBlocks, left_out);
}

// Copies to one server after the other, each trainer beginning with another one: two that copied to the same server at
// once would have half of its link each. Trainers never start at the same moment, and meet for as long whenever they go
// on to the next server: so a batch begins with the server that the one before ended with.
void GpuSender::move_out(std::size_t number) {
  if (!may_store()) return;
  Batch& batch = batches_[number];
  if (batch.stores) store(*batch.stores, storing_);
  const std::size_t groups = batch.copies.size();
  for (std::size_t turn = 0; turn < groups; ++turn) {
    const std::size_t group = number % 2 == 0 ? turn : groups - 1 - turn;
    if (!is_dropped(group)) batch.copies[group].launch(storing_);
  }
  stored_.record(storing_);
}

}  // namespace weightcast

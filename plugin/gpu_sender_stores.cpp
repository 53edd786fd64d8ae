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

std::byte* GpuSender::mapped_target(const GpuRun& run) const {
  if (std::find(stored_to_.begin(), stored_to_.end(), run.server) == stored_to_.end()) return nullptr;
  const MemorySpan there = pipeline_.fabric_.mapped(run.peer, run.to_region);
  const bool holds = there.kind == MemoryKind::cuda && run.to <= there.bytes && run.bytes <= there.bytes - run.to;
  return holds ? there.address + run.to : nullptr;
}

// Of runs that have a mapped_target(), but for those to servers that were disconnected since.
std::optional<GpuCopy> GpuSender::stores_of(const std::vector<GpuRun>& runs,
                                            const std::function<const std::byte*(const GpuRun&)>& source) const {
  std::vector<GpuCopyJob> jobs;
  jobs.reserve(runs.size());
  for (const GpuRun& run : runs) {
    std::byte* const to = mapped_target(run);
    const auto group = std::find(stored_to_.begin(), stored_to_.end(), run.server) - stored_to_.begin();
    if (to != nullptr) jobs.push_back({source(run), to, run.bytes, static_cast<std::uint32_t>(group)});
  }
  if (jobs.empty()) return std::nullopt;
  return GpuCopy(jobs);
}

// Once launched it runs to its end, for servers too that are dropped meanwhile: as puts do that were posted.
void GpuSender::store(const GpuCopy& stores, const CudaStream& stream) {
  std::uint64_t left_out = 0;
  for (std::size_t group = 0; group < stored_to_.size(); ++group) {
    const Pipeline::ServerLink& link = *pipeline_.servers_[stored_to_[group]];
    if (link.dropped) left_out |= std::uint64_t{1} << group;
  }
  if (!pipeline_.fabric_.lease_holds()) {
    pipeline_.fail(Status(Code::refused, fmt::format("{}, version {}: stores to servers' GPUs not made: the lease has "
                                                     "run out, the controller has not been heard in time",
                                                     name_of(pipeline_.catalog_), pipeline_.version_)));
    return;
  }
  stores.launch(stream, kStoringBlocks, left_out);
  stored_.record(stream);
}

}  // namespace weightcast

// What a GPU's sender moves, piece by piece, and which way each piece goes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "transport/fabric.h"

namespace weightcast {

// Bytes that lie behind each other at both ends.
struct GpuRun {
  std::size_t server = 0;  // index into the pipeline's servers
  PeerId peer = 0;
  RegionId from_region = 0;
  std::uint64_t from = 0;
  std::uint32_t to_region = 0;
  std::uint64_t to = 0;
  std::uint64_t bytes = 0;
};

// Between GPUs that are linked, a put by the copy engine costs microseconds however small it is, and long ones come
// nearer to the link's speed: 205, 317 and 364 GB/s at 1, 4 and 16 MiB, of 387 at 64 MiB (H200, NVLink). So shorter
// runs are stored by a kernel, many at once, and longer ones leave the multiprocessors to the casts.
inline constexpr std::uint64_t kShortestPutBetweenGpus = 16 * MiB;

// Appends the run, or makes it part of one of the last, if it lies behind that at both ends and both together have at
// most `most_bytes`: runs to several servers alternate.
void append_run(std::vector<GpuRun>& runs, const GpuRun& run, std::uint64_t most_bytes);

// Rows of one buffer, brought together in another in the order of their targets, so that neighbours there are one run.
struct Gathering {
  struct Row {
    std::uint64_t from = 0;  // in the buffer where they stand
    std::uint64_t to = 0;    // in the other
    std::uint64_t bytes = 0;
  };
  std::vector<Row> rows;
  std::vector<GpuRun> runs;  // `from` is in the other buffer, of which from_region is not known yet
  std::uint64_t bytes = 0;
};
[[nodiscard]] Gathering gather_runs(std::vector<GpuRun> rows, std::uint64_t most_bytes);

struct GpuRuns {
  std::vector<GpuRun> stored;  // by a kernel of this process
  std::vector<GpuRun> put;
};
// Every run once, in their order. Stored is what is shorter than kShortestPutBetweenGpus and where `is_mapped` says
// that its target stands in this process as memory of a GPU.
[[nodiscard]] GpuRuns part_runs(const std::vector<GpuRun>& runs, const std::function<bool(const GpuRun&)>& is_mapped);

}  // namespace weightcast

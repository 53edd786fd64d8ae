// What a sender moves, piece by piece, and between GPUs, which way each piece goes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "transport/fabric.h"

namespace weightcast {

// Bytes that lie behind each other at both ends.
struct ByteRun {
  std::size_t server = 0;  // index into the sender's servers
  PeerId peer = 0;
  RegionId from_region = 0;
  std::uint64_t from = 0;
  std::uint32_t to_region = 0;
  std::uint64_t to = 0;
  std::uint64_t bytes = 0;
};

// Between GPUs that are linked, a kernel stores short runs, many at once, at 371 GB/s; copy engines are faster and
// leave the multiprocessors to the casts: 257, 390, 393 and 395 GB/s at 0.25, 1, 3 and 16 MiB where one call enqueues
// many copies. Where that is not to be had, each is a put, and waits for the one before: 205, 317 and 364 GB/s at 1, 4
// and 16 MiB (H200, NVLink).
inline constexpr std::uint64_t kShortestCopyBetweenGpus = 1 * MiB;
inline constexpr std::uint64_t kShortestPutBetweenGpus = 16 * MiB;

// Appends the run, or makes it part of one of the last, if it lies behind that at both ends and both together have at
// most `most_bytes`: runs to several servers alternate.
void append_run(std::vector<ByteRun>& runs, const ByteRun& run, std::uint64_t most_bytes);

// Rows of one buffer, brought together in another in the order of their targets, so that neighbours there are one run.
struct Gathering {
  struct Row {
    std::uint64_t from = 0;  // in the buffer where they stand
    std::uint64_t to = 0;    // in the other
    std::uint64_t bytes = 0;
  };
  std::vector<Row> rows;
  std::vector<ByteRun> runs;  // `from` is in the other buffer, of which from_region is not known yet
  std::uint64_t bytes = 0;
};
[[nodiscard]] Gathering gather_runs(std::vector<ByteRun> rows, std::uint64_t most_bytes);

struct PartedRuns {
  std::vector<ByteRun> stored;  // by a kernel of this process
  std::vector<ByteRun> copied;  // by copy engines, in a batch
  std::vector<ByteRun> put;
};
// Every run once, in their order. Where `is_mapped` says that its target stands in this process as memory of a GPU, its
// length decides: stored below kShortestCopyBetweenGpus and copied from there on, if `can_copy` in batches, else stored
// below kShortestPutBetweenGpus.
[[nodiscard]] PartedRuns part_runs(const std::vector<ByteRun>& runs,
                                   const std::function<bool(const ByteRun&)>& is_mapped, bool can_copy);

}  // namespace weightcast

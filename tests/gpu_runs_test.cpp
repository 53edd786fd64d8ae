#include "plugin/gpu_runs.h"

#include <doctest/doctest.h>

using namespace weightcast;

namespace {

constexpr RegionId kScratch = 7;

GpuRun run(std::size_t server, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  return {server, static_cast<PeerId>(10 + server), kScratch, from, 0, to, bytes};
}

std::vector<GpuRun> joined(const std::vector<GpuRun>& pieces, std::uint64_t most_bytes = 64 * MiB) {
  std::vector<GpuRun> runs;
  for (const GpuRun& piece : pieces) append_run(runs, piece, most_bytes);
  return runs;
}

std::vector<std::uint64_t> bytes_of(const std::vector<GpuRun>& runs) {
  std::vector<std::uint64_t> bytes;
  bytes.reserve(runs.size());
  for (const GpuRun& it : runs) bytes.push_back(it.bytes);
  return bytes;
}

using Sizes = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("pieces that lie behind each other at both ends are one run") {
  CHECK(bytes_of(joined({run(0, 0, 100, 8), run(0, 8, 108, 8), run(0, 16, 116, 4)})) == Sizes{20});
  // Two servers alternate: each one's pieces are joined.
  CHECK(bytes_of(joined({run(0, 0, 0, 8), run(1, 0, 0, 8), run(0, 8, 8, 8), run(1, 8, 8, 8)})) == Sizes{16, 16});
  // Another trainer's rows lie between them on the server, or others' in the scratch.
  CHECK(bytes_of(joined({run(0, 0, 0, 8), run(0, 8, 16, 8)})) == Sizes{8, 8});
  CHECK(bytes_of(joined({run(0, 0, 0, 8), run(0, 16, 8, 8)})) == Sizes{8, 8});
  // Never beyond the longest put.
  CHECK(bytes_of(joined({run(0, 0, 0, 8), run(0, 8, 8, 8), run(0, 16, 16, 8)}, 16)) == Sizes{16, 8});
}

TEST_CASE("a kernel stores what is short and mapped, all else is put, and nothing is lost or done twice") {
  const std::uint64_t edge = kShortestPutBetweenGpus;
  struct Row {
    const char* what;
    std::vector<GpuRun> runs;  // server 0 is mapped, server 1 is not
    Sizes stored;
    Sizes put;
  };
  const std::vector<Row> table = {
      {"nothing", {}, {}, {}},
      {"an expert's rows of one of two trainers",
       {run(0, 0, 0, 3 * MiB), run(0, 3 * MiB, 6 * MiB, 3 * MiB)},
       {3 * MiB, 3 * MiB},
       {}},
      {"a row of scales", {run(0, 0, 4, 768)}, {768}, {}},
      {"just short of a put, and just one", {run(0, 0, 0, edge - 1), run(0, edge, edge, edge)}, {edge - 1}, {edge}},
      {"a server elsewhere", {run(1, 0, 0, 768), run(1, 1 * MiB, 0, edge)}, {}, {768, edge}},
      {"both in turn", {run(0, 0, 0, 1), run(1, 0, 0, 2), run(0, 5, 9, 3), run(1, 5, 9, 4)}, {1, 3}, {2, 4}},
  };
  for (const Row& row : table) {
    CAPTURE(row.what);
    const GpuRuns parted = part_runs(row.runs, [](const GpuRun& it) { return it.server == 0; });
    CHECK(bytes_of(parted.stored) == row.stored);
    CHECK(bytes_of(parted.put) == row.put);
  }
}

#include "plugin/byte_runs.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

using namespace weightcast;

namespace {

constexpr RegionId kScratch = 7;

ByteRun run(std::size_t server, std::uint64_t from, std::uint64_t to, std::uint64_t bytes) {
  return {server, static_cast<PeerId>(10 + server), kScratch, from, 0, to, bytes};
}

std::vector<ByteRun> joined(const std::vector<ByteRun>& pieces, std::uint64_t most_bytes = 64 * MiB) {
  std::vector<ByteRun> runs;
  for (const ByteRun& piece : pieces) append_run(runs, piece, most_bytes);
  return runs;
}

std::vector<std::uint64_t> bytes_of(const std::vector<ByteRun>& runs) {
  std::vector<std::uint64_t> bytes;
  bytes.reserve(runs.size());
  for (const ByteRun& it : runs) bytes.push_back(it.bytes);
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

namespace {

using Memory = std::vector<std::uint8_t>;

// What puts of `runs` out of `memory` make of the servers' memory, by server and region: byte by byte.
std::map<std::pair<std::size_t, std::uint32_t>, Memory> moved(const std::vector<ByteRun>& runs, const Memory& memory) {
  std::map<std::pair<std::size_t, std::uint32_t>, Memory> servers;
  for (const ByteRun& it : runs) {
    Memory& there = servers[{it.server, it.to_region}];
    there.resize(std::max(there.size(), it.to + it.bytes));
    std::copy_n(memory.begin() + static_cast<std::ptrdiff_t>(it.from), it.bytes,
                there.begin() + static_cast<std::ptrdiff_t>(it.to));
  }
  return servers;
}

// Rows of 1 to 40 bytes to three servers, which keep each other's neighbours apart or together; in the order of steps.
std::vector<ByteRun> rows_of_steps(std::mt19937& random, Memory& memory) {
  std::vector<ByteRun> rows;
  std::map<std::pair<std::size_t, std::uint32_t>, std::uint64_t> filled;
  for (int step = 0; step < 300; ++step) {
    ByteRun row = run(random() % 3, memory.size(), 0, 1 + random() % 40);
    row.to_region = random() % 2;
    std::uint64_t& next = filled[{row.server, row.to_region}];
    row.to = next + (random() % 4 == 0 ? 4 : 0);  // another trainer's row stands between
    next = row.to + row.bytes;
    memory.resize(memory.size() + row.bytes + random() % 2);
    rows.push_back(row);
  }
  for (auto& byte : memory) byte = static_cast<std::uint8_t>(1 + random() % 255);
  return rows;
}

}  // namespace

TEST_CASE("joined puts move the bytes that their pieces would") {
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    Memory memory;
    const auto rows = rows_of_steps(random, memory);
    const std::uint64_t most = 40 + random() % 200;
    const auto runs = joined(rows, most);
    CHECK((moved(runs, memory) == moved(rows, memory)));
    CHECK(runs.size() < rows.size());
    for (const std::uint64_t bytes : bytes_of(runs)) CHECK(bytes <= most);
  }
}

TEST_CASE(
    "scales that are gathered first arrive where single rows would, in fewer puts, in whatever order they stand") {
  std::mt19937 random(6);
  for (int round = 0; round < 20; ++round) {
    Memory memory;
    auto rows = rows_of_steps(random, memory);
    std::shuffle(rows.begin(), rows.end(), random);
    const Gathering gathering = gather_runs(rows, 1 * MiB);
    Memory gathered(gathering.bytes);
    for (const Gathering::Row& row : gathering.rows) {
      std::copy_n(memory.begin() + static_cast<std::ptrdiff_t>(row.from), row.bytes,
                  gathered.begin() + static_cast<std::ptrdiff_t>(row.to));
    }
    CHECK(std::count(gathered.begin(), gathered.end(), 0) == 0);  // every byte was brought
    CHECK((moved(gathering.runs, gathered) == moved(rows, memory)));
    CHECK(2 * gathering.runs.size() < rows.size());  // one in four is not its predecessor's neighbour
  }
  CHECK(gather_runs({}, 1).runs.empty());
}

TEST_CASE(
    "of what is mapped the short is stored and the long copied, all else is put, and nothing is lost or done twice") {
  const std::uint64_t copied = kShortestCopyBetweenGpus;
  const std::uint64_t put = kShortestPutBetweenGpus;
  const std::vector<ByteRun> expert = {run(0, 0, 0, 3 * MiB), run(0, 3 * MiB, 6 * MiB, 3 * MiB)};
  const std::vector<ByteRun> elsewhere = {run(1, 0, 0, 768), run(1, 1 * MiB, 0, put)};
  const std::vector<ByteRun> around_copy = {run(0, 0, 0, copied - 1), run(0, copied, copied, copied)};
  const std::vector<ByteRun> around_put = {run(0, 0, 0, put - 1), run(0, put, put, put)};
  struct Row {
    const char* what;
    std::vector<ByteRun> runs;  // server 0 is mapped, server 1 is not
    bool can_copy;
    Sizes stored;
    Sizes copied;
    Sizes put;
  };
  const std::vector<Row> table = {
      {"nothing", {}, true, {}, {}, {}},
      {"an expert's rows of one of two trainers", expert, true, {}, {3 * MiB, 3 * MiB}, {}},
      {"the same with an older driver", expert, false, {3 * MiB, 3 * MiB}, {}, {}},
      {"a row of scales", {run(0, 0, 4, 768)}, true, {768}, {}, {}},
      {"just short of a copy, and just one", around_copy, true, {copied - 1}, {copied}, {}},
      {"just short of a put, and just one, with an older driver", around_put, false, {put - 1}, {}, {put}},
      {"a server elsewhere", elsewhere, true, {}, {}, {768, put}},
      {"both in turn", {run(0, 0, 0, 1), run(1, 0, 0, 2), run(0, 5, 9, 3), run(1, 5, 9, 4)}, true, {1, 3}, {}, {2, 4}},
  };
  for (const Row& row : table) {
    CAPTURE(row.what);
    const PartedRuns parted = part_runs(
        row.runs, [](const ByteRun& it) { return it.server == 0; }, row.can_copy);
    CHECK(bytes_of(parted.stored) == row.stored);
    CHECK(bytes_of(parted.copied) == row.copied);
    CHECK(bytes_of(parted.put) == row.put);
  }
}

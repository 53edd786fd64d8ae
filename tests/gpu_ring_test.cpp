// The ring of a GPU's batches in front of real puts into another process. Exit code 77 without a GPU.
#define DOCTEST_CONFIG_IMPLEMENT
#include "plugin/gpu_ring.h"

#include <doctest/doctest.h>

#include <cstdio>

#include "quant/gpu.h"
#include "tests/cuda_memory.h"
#include "tests/fabric_process.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr std::int64_t kRows = 1024;
constexpr std::int64_t kCols = 1024;
constexpr std::uint64_t kValues = kRows * kCols;
constexpr std::size_t kBatches = kRegionBytes / kValues;
constexpr std::uint64_t kSpin_us = 400;

// BF16 numbers that differ from batch to batch and from round to round.
std::vector<std::byte> values_of(std::uint64_t seed) {
  std::vector<std::byte> bytes(2 * kValues);
  for (std::uint64_t at = 0; at < kValues; ++at) {
    const auto bits = static_cast<std::uint16_t>(0x3C00 + (at * 2654435761U + seed * 40503) % 0x3FF);
    std::memcpy(bytes.data() + 2 * at, &bits, sizeof bits);
  }
  return bytes;
}

std::vector<std::byte> codes_of(const std::vector<std::byte>& values) {
  const SourceMatrix source = {values.data(), SourceType::bf16, kRows, kCols, kCols, 1};
  std::vector<float> amax(blocks_touched(source, kFp8, {}));
  (void)block_amax(source, kFp8, {}, amax);
  std::vector<std::byte> codes(kValues);
  (void)cast(source, kFp8, {}, amax, codes.data(), kCols, {});
  return codes;
}

// Each batch is a matrix, cast into a slot behind a kernel that takes its time, and put to its place at the peer.
class CastAndPut final : public GpuRing::Work {
 public:
  CastAndPut(Fabric& fabric, const PeerProcess& process, std::size_t slots)
      : fabric_(fabric), sources_(kBatches * 2 * kValues), codes_(slots * kValues), findings_(1), tallies_(slots) {
    for (std::size_t batch = 0; batch < kBatches; ++batch) {
      GpuCastJob job;
      job.source = {sources_.get() + batch * 2 * kValues, SourceType::bf16, kRows, kCols, kCols, 1};
      job.output = codes_.get() + batch % slots * kValues;
      job.output_row_bytes = kCols;
      job.frame = {0, kCols / 8, 0, 0};
      casts_.emplace_back(kFp8, std::span(&job, 1));
    }
    region_ = fabric_.register_memory({codes_.get(), codes_.bytes(), MemoryKind::cuda});
    peer_ = fabric_.connect("server 2", process.card, soon());
  }
  // Fills the sources and returns what the peer must hold.
  std::vector<std::byte> prepare(std::uint64_t round, const CudaStream& stream) {
    std::vector<std::byte> expected;
    PinnedBuffer host(2 * kValues);
    for (std::size_t batch = 0; batch < kBatches; ++batch) {
      const auto values = values_of(round * kBatches + batch);
      std::memcpy(host.get(), values.data(), values.size());
      copy_async(sources_.get() + batch * 2 * kValues, host.get(), host.bytes(), stream);
      stream.synchronize();
      const auto codes = codes_of(values);
      expected.insert(expected.end(), codes.begin(), codes.end());
    }
    return expected;
  }
  void finish() {
    Tally last;
    throw_if_failed(fabric_.signal(peer_, Bytes(1), &last, soon()));
    throw_if_failed(last.wait(soon(), "the signal"));
    for (Tally& tally : tallies_) throw_if_failed(tally.wait(soon(), "the puts"));
  }

  bool is_free(std::size_t slot) override { return tallies_[slot].outstanding() == 0; }
  const CudaStream& enqueue(std::size_t batch, std::size_t, const CudaStream& stream) override {
    spin_on_gpu(stream, kSpin_us);
    casts_[batch].launch(stream, 1, findings_);
    if (hasty) put(batch, batch % tallies_.size());
    return stream;
  }
  void deliver(std::size_t batch, std::size_t slot) override {
    if (!hasty) put(batch, slot);
  }
  bool has_to_stop() override { return stops; }

  bool hasty = false;  // puts without waiting for the event
  bool stops = false;

 private:
  void put(std::size_t batch, std::size_t slot) {
    const Put put{peer_, region_, slot * kValues, 0, batch * kValues, kValues, &tallies_[slot]};
    throw_if_failed(fabric_.put(put, soon()));
  }

  Fabric& fabric_;
  DeviceBuffer sources_;
  DeviceBuffer codes_;
  GpuFindings findings_;
  std::vector<Tally> tallies_;
  std::vector<GpuCast> casts_;
  RegionId region_ = 0;
  PeerId peer_ = 0;
};

}  // namespace

TEST_CASE("a put never reads before its cast has ended, however long the kernel in front of it takes") {
  PeerProcess process("cuda");
  use_primary_cuda_context(0);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  GpuRing ring(3);
  CastAndPut work(*fabric, process, ring.slots());
  const CudaStream stream;
  int stale = 0;
  for (std::uint64_t round = 0; round < 10; ++round) {
    for (const bool hasty : {true, false}) {
      const auto expected = work.prepare(2 * round + (hasty ? 1 : 0), stream);
      work.hasty = hasty;
      CHECK(ring.run(kBatches, work, soon()).ok());
      work.finish();
      const bool right = process.sum(0, 0, kRegionBytes) == weighted_sum(expected);
      if (hasty) stale += right ? 0 : 1;
      if (!hasty) CHECK(right);
    }
  }
  CHECK(stale == 10);  // without the event the same puts read what stood there before: the check above can fail
}

TEST_CASE("what a kernel stores into a peer's memory is there when a signal after it arrives, and no more than that") {
  PeerProcess process("cuda");
  use_primary_cuda_context(0);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  const DeviceBuffer source(kRegionBytes);
  (void)fabric->register_memory({source.get(), source.bytes(), MemoryKind::cuda});
  const PeerId peer = fabric->connect("server 2", process.card, soon());
  const MemorySpan there = fabric->mapped(peer, 0);
  REQUIRE(there.kind == MemoryKind::cuda);
  const CudaStream stream(CudaStream::Kind::urgent);
  const CudaEvent stored;
  std::vector<std::byte> expected(kRegionBytes);
  fill({expected.data(), expected.size()}, 1);
  PinnedBuffer host(kRegionBytes);
  std::memcpy(host.get(), expected.data(), expected.size());
  copy_async(source.get(), host.get(), host.bytes(), stream);
  // Rows of 768 bytes and runs of many tiles, in the two halves of the region, a group each.
  std::vector<GpuCopyJob> jobs;
  jobs.reserve(kRegionBytes / 2 / 768 + 9);
  for (std::uint64_t at = 0; at < kRegionBytes / 2; at += 768) {
    const std::uint64_t bytes = std::min<std::uint64_t>(768, kRegionBytes / 2 - at);
    jobs.push_back({source.get() + at, there.address + at, bytes, 0});
  }
  for (std::uint64_t at = kRegionBytes / 2; at < kRegionBytes; at += 512 * KiB) {
    jobs.push_back({source.get() + at, there.address + at, 512 * KiB, 1});
  }
  const GpuCopy stores(jobs);
  const auto untouched = process.sum(0, kRegionBytes / 2, kRegionBytes / 2);
  for (const std::uint64_t left_out : {std::uint64_t{2}, std::uint64_t{0}}) {
    spin_on_gpu(stream, kSpin_us);
    stores.launch(stream, 16, left_out);
    stored.record(stream);
    for (bool is_done = false; !is_done;) throw_if_failed(stored.query(is_done));
    Tally tally;
    REQUIRE(fabric->signal(peer, Bytes(1), &tally, soon()).ok());
    CHECK(tally.wait(soon(), "the signal").ok());
    CHECK(process.next_message() == "00");
    const std::span<const std::byte> all(expected);
    CHECK(process.sum(0, 0, kRegionBytes / 2) == weighted_sum(all.first(kRegionBytes / 2)));
    const auto second_half = process.sum(0, kRegionBytes / 2, kRegionBytes / 2);
    CHECK(second_half == (left_out != 0 ? untouched : weighted_sum(all.last(kRegionBytes / 2))));
  }
}

TEST_CASE("work that has to stop, or is late, leaves nothing running on the device") {
  PeerProcess process("cuda");
  use_primary_cuda_context(0);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  GpuRing ring(2);
  CastAndPut work(*fabric, process, ring.slots());
  const CudaStream stream;
  (void)work.prepare(1, stream);
  work.stops = true;
  CHECK(ring.run(kBatches, work, soon()).ok());
  work.stops = false;
  CHECK(ring.run(kBatches, work, Deadline::after(Milliseconds(0))).code() == Code::timed_out);
  CHECK(ring.run(kBatches, work, soon()).ok());
  work.finish();
}

int main(int argc, char** argv) {
  if (!cuda_is_there() || !has_gpu_kernels()) {
    std::puts(has_gpu_kernels() ? "SKIPPED: no CUDA driver, or no GPU" : "SKIPPED: this build has no CUDA kernels");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}

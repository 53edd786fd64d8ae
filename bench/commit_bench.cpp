// How long an engine stands still while a staged version becomes live: one batched copy within the GPU's memory.
//
// Two buffers, shadow and live, of what a rank of a large model holds, as tensors that stand apart in both. The stall
// is what the caller of commit waits: from the call to the end of the last copy. Beside it the driver's copy of the
// same bytes in one piece. After the rounds both buffers' digests are compared.
//
// And how long a delta of a part of it takes to apply: of so many of its bytes, anywhere. No landing takes deltas yet.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>

#include "bench/gpu_rounds.h"
#include "quant/gpu.h"
#include "transport/base/report_file.h"
#include "transport/base/units.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

constexpr double kChanged = 0.02;

struct DeltaResult {
  std::uint64_t bytes = 0;
  std::uint64_t changes = 0;
  Spread ms;
  bool verified = false;
};

// Of the first bytes of `live`, which repeat `sample`.
DeltaResult measure_delta(const DeviceBuffer& live, const PinnedBuffer& sample, std::uint64_t bytes, int rounds,
                          const CudaStream& stream) {
  constexpr std::uint64_t kEntry = 5;
  constexpr std::uint64_t kVersion = 1;
  std::vector<std::byte> before(bytes);
  for (std::uint64_t at = 0; at < bytes; at += sample.bytes()) {
    std::memcpy(before.data() + at, sample.get(), std::min(sample.bytes(), bytes - at));
  }
  auto after = before;
  std::mt19937_64 random(1);
  const auto changes = static_cast<std::uint64_t>(kChanged * static_cast<double>(bytes));
  for (std::uint64_t change = 0; change < changes; ++change) after[random() % bytes] ^= std::byte{0x81};
  const auto encoded = encode_delta(before, after, digest_seed(kVersion, kEntry));
  DeltaView delta;
  throw_if_failed(read_delta(encoded, bytes, delta));
  const DeviceBuffer on_device(encoded.size());
  PinnedBuffer staging(encoded.size());
  std::memcpy(staging.get(), encoded.data(), encoded.size());
  copy_async(on_device.get(), staging.get(), encoded.size(), stream);
  std::vector<GpuCase> cases = {{"delta", [&](const CudaStream& s) {
                                   apply_delta_on_gpu(delta, encoded.data(), on_device.get(), live.get(), s);
                                 }}};
  run_rounds(cases, rounds, stream);
  GpuFindings findings(1);
  findings.clear(stream);
  const GpuDigestJob job = {live.get(), 1, bytes, 0, {kEntry, (bytes + 7) / 8, 0, 0}, 0, false};
  const GpuDigest digest({&job, 1});
  digest.launch(stream, kVersion, findings);
  findings.fetch(stream);
  stream.synchronize();
  const auto ms = [](double seconds) { return 1e3 * seconds; };
  return {bytes, delta.changes, spread_of(case_of(cases, "delta").seconds).map(ms), findings.digest(0) == delta.after};
}

int run(int argc, char** argv) {
  double gigabytes = 37.7;
  int tensors = 2000;
  int rounds = 20;
  double delta_gigabytes = 0.5;
  std::string json_file;
  CLI::App app("The stall of a staged commit: a batched copy within one GPU's memory");
  app.add_option("--gb", gigabytes, "GB (1e9 bytes) of each of the two buffers")
      ->check(CLI::Range(0.1, 70.0))
      ->capture_default_str();
  app.add_option("--tensors", tensors, "pieces that are copied, of different sizes")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--delta-gb", delta_gigabytes, "GB of the buffer that a delta of 2 % of its bytes is applied to")
      ->check(CLI::Range(0.001, 4.0))
      ->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  use_primary_cuda_context(0);
  const auto facts = cuda_device_facts(0);
  const CudaStream stream;
  const auto bytes = static_cast<std::uint64_t>(gigabytes * 1e9) / 4096 * 4096;
  const DeviceBuffer shadow(bytes);
  const DeviceBuffer live(bytes);
  PinnedBuffer sample(64 << 20);
  for (std::uint64_t word = 0; word < sample.bytes() / 8; ++word) {
    const std::uint64_t value = (word + 1) * 0x9E3779B97F4A7C15;
    std::memcpy(sample.get() + 8 * word, &value, sizeof value);
  }
  for (std::uint64_t at = 0; at < bytes; at += sample.bytes()) {
    copy_async(shadow.get() + at, sample.get(), std::min(sample.bytes(), bytes - at), stream);
  }
  fill_async(live.get(), std::byte{0xA5}, bytes, stream);
  stream.synchronize();

  std::vector<GpuCopyJob> jobs;
  const std::uint64_t mean = bytes / static_cast<std::uint64_t>(tensors);
  for (std::uint64_t at = 0; at < bytes;) {  // sizes from half to one and a half of the mean, multiples of 16
    const std::uint64_t size = std::min(bytes - at, (mean / 2 + mean * (jobs.size() * 7 % 11) / 10) / 16 * 16 + 16);
    jobs.push_back({shadow.get() + at, live.get() + at, size});
    at += size;
  }
  const GpuCopy commit(jobs);
  std::vector<double> stalls;
  std::vector<GpuCase> cases = {
      {"driver", [&](const CudaStream& s) { copy_async(live.get(), shadow.get(), bytes, s); }},
      {"batch", [&](const CudaStream& s) { commit.launch(s); }}};
  run_rounds(cases, rounds, stream);
  fill_async(live.get(), std::byte{0xA5}, bytes, stream);
  stream.synchronize();
  for (int round = 0; round < rounds; ++round) {
    const auto start = Clock::now();
    commit.launch(stream);
    stream.synchronize();
    stalls.push_back(seconds_since(start));
  }
  GpuFindings findings(2);
  findings.clear(stream);
  const std::vector<GpuDigestJob> both = {{shadow.get(), 1, bytes, 0, {0, bytes / 8, 0, 0}, 0, false},
                                          {live.get(), 1, bytes, 0, {0, bytes / 8, 0, 0}, 1, false}};
  GpuDigest(both).launch(stream, 1, findings);
  findings.fetch(stream);
  stream.synchronize();
  const bool copied = findings.digest(0) == findings.digest(1);
  const auto delta_bytes = std::min(bytes, static_cast<std::uint64_t>(delta_gigabytes * 1e9));
  const DeltaResult delta = measure_delta(live, sample, delta_bytes, rounds, stream);
  const bool right = copied && delta.verified;

  const auto ms = [](double seconds) { return 1e3 * seconds; };
  const Spread driver = spread_of(case_of(cases, "driver").seconds);
  const Spread batch = spread_of(case_of(cases, "batch").seconds);
  const Spread stall = spread_of(stalls).map(ms);
  const double share = driver.median / batch.median;
  fmt::print("{}; {:.1f} GB in {} pieces; median of {} [min max]\n", facts.name, 1e-9 * static_cast<double>(bytes),
             jobs.size(), rounds);
  fmt::print("stall as the caller sees it  {:8.3f} ms [{:.3f} {:.3f}]\n", stall.median, stall.least, stall.most);
  fmt::print("batched copy on the device   {:8.3f} ms, {:.1f} GB/s read and written, {:.1f} % of the driver's copy\n",
             ms(batch.median), 2e-9 * static_cast<double>(bytes) / batch.median, 100 * share);
  fmt::print("copied bytes {}\n", copied ? "verified" : "WRONG");
  fmt::print("a delta of {:.1f} % of {:.2f} GB {:8.3f} ms [{:.3f} {:.3f}] to apply, {}\n",
             100.0 * static_cast<double>(delta.changes) / static_cast<double>(delta.bytes),
             1e-9 * static_cast<double>(delta.bytes), delta.ms.median, delta.ms.least, delta.ms.most,
             delta.verified ? "verified" : "WRONG");
  const nlohmann::json result = {{"bench", "commit"},
                                 {"device", facts.name},
                                 {"bytes", bytes},
                                 {"pieces", jobs.size()},
                                 {"rounds", rounds},
                                 {"verified", right},
                                 {"stall_ms", stall.json()},
                                 {"copy_ms", batch.map(ms).json()},
                                 {"driver_copy_ms", driver.map(ms).json()},
                                 {"share_of_driver_copy", share},
                                 {"delta_bytes", delta.bytes},
                                 {"delta_changes", delta.changes},
                                 {"delta_apply_ms", delta.ms.json()}};
  file.keep(result.dump(1) + "\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "commit_bench: {}\n", error.what());
    return 1;
  }
}

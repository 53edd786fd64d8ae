// How long an engine stands still while a staged version becomes live: one batched copy within the GPU's memory.
//
// Two buffers, shadow and live, of what a rank of a large model holds, as tensors that stand apart in both. The stall
// is what the caller of commit waits: from the call to the end of the last copy. Beside it the driver's copy of the
// same bytes in one piece. After the rounds both buffers' digests are compared.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <exception>

#include "bench/gpu_rounds.h"
#include "quant/gpu.h"
#include "transport/base/report_file.h"
#include "transport/base/units.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

int run(int argc, char** argv) {
  double gigabytes = 37.7;
  int tensors = 2000;
  int rounds = 20;
  std::string json_file;
  CLI::App app("The stall of a staged commit: a batched copy within one GPU's memory");
  app.add_option("--gb", gigabytes, "GB (1e9 bytes) of each of the two buffers")
      ->check(CLI::Range(0.1, 70.0))
      ->capture_default_str();
  app.add_option("--tensors", tensors, "pieces that are copied, of different sizes")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
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
  const bool right = findings.digest(0) == findings.digest(1);

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
  fmt::print("copied bytes {}\n", right ? "verified" : "WRONG");
  const nlohmann::json result = {{"bench", "commit"},
                                 {"device", facts.name},
                                 {"bytes", bytes},
                                 {"pieces", jobs.size()},
                                 {"rounds", rounds},
                                 {"verified", right},
                                 {"stall_ms", stall.json()},
                                 {"copy_ms", batch.map(ms).json()},
                                 {"driver_copy_ms", driver.map(ms).json()},
                                 {"share_of_driver_copy", share}};
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

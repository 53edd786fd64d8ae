// How fast one GPU casts BF16 weights to FP8 in 128x128 blocks and digests them, as a share of what its memory does.
//
// 16 GB of BF16 in a mix of real shapes, one batched launch. Rounds run every case once. The limits are measured in the
// same rounds: a copy by the driver, and a kernel that only reads. Bytes are those that must move: the source once, the
// codes and the scales once. After the rounds the digests fused into the cast are compared with those of the landed
// bytes, and a matrix of each shape with the CPU's cast, byte for byte.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <bit>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <string>

#include "bench/gpu_rounds.h"
#include "bench/gpu_weights.h"
#include "quant/gpu.h"
#include "transport/base/report_file.h"
#include "transport/cuda.h"

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr std::uint64_t kVersion = 3;

std::vector<std::byte> read(const std::byte* device, std::uint64_t bytes, const CudaStream& stream) {
  PinnedBuffer host(bytes);
  copy_async(host.get(), device, bytes, stream);
  stream.synchronize();
  return {host.get(), host.get() + bytes};
}

// Codes, scales and digest of one matrix against the CPU.
bool is_right(const GpuCastJob& job, const GpuFindings& findings, const CudaStream& stream) {
  const SourceMatrix& shape = job.source;
  const auto values = static_cast<std::uint64_t>(shape.rows * shape.cols);
  const auto input = read(shape.data, 2 * values, stream);
  SourceMatrix source = shape;
  source.data = input.data();
  std::vector<float> amax(blocks_touched(source, kFp8, {}));
  (void)block_amax(source, kFp8, {}, amax);
  std::vector<std::byte> codes(values);
  std::vector<std::byte> scales(4 * amax.size());
  DigestFrame frame = job.frame;
  frame.seed = digest_seed(kVersion, job.frame.seed);
  const auto result = cast(source, kFp8, {}, amax, codes.data(), shape.cols, frame);
  encode_scales(kFp8, amax, 0, scales.data());
  return read(job.output, values, stream) == codes && read(job.scales, scales.size(), stream) == scales &&
         result.digest == findings.digest(job.digest_slot);
}

bool verify(const Weights& weights, const GpuCast& batch, const GpuDigest& digest, int multiprocessors,
            const CudaStream& stream) {
  GpuFindings cast_says(weights.slots());
  GpuFindings bytes_say(weights.slots());
  fill_async(weights.codes.get(), std::byte{0xA5}, weights.codes.bytes(), stream);
  fill_async(weights.scales.get(), std::byte{0xA5}, weights.scales.bytes(), stream);
  cast_says.clear(stream);
  bytes_say.clear(stream);
  batch.launch(stream, kVersion, cast_says, multiprocessors);
  digest.launch(stream, kVersion, bytes_say);
  cast_says.fetch(stream);
  bytes_say.fetch(stream);
  stream.synchronize();
  bool right = !cast_says.found_bad();
  for (std::uint32_t slot = 0; slot < weights.slots(); ++slot) {
    right = right && cast_says.digest(slot) == bytes_say.digest(slot);
  }
  for (std::size_t job = 0; job < std::min(kMix.size(), weights.jobs.size()); ++job) {
    right = right && is_right(weights.jobs[job], cast_says, stream);
  }
  return right;
}

std::vector<GpuDigestJob> digest_jobs(const Weights& weights) {
  std::vector<GpuDigestJob> jobs;
  for (const GpuCastJob& cast : weights.jobs) {
    jobs.push_back({cast.output, static_cast<std::uint64_t>(cast.source.rows),
                    static_cast<std::uint64_t>(cast.source.cols), cast.output_row_bytes, cast.frame, cast.digest_slot,
                    false});
  }
  return jobs;
}

int run(int argc, char** argv) {
  double gigabytes = 16;
  int rounds = 20;
  std::string json_file;
  std::string only;
  CLI::App app("How fast one GPU casts BF16 to FP8 with 128x128 blocks, as a share of its copy bandwidth");
  app.add_option("--gb", gigabytes, "GB (1e9 bytes) of BF16")->check(CLI::Range(0.1, 60.0))->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--shape", only, "ROWSxCOLS: this shape alone instead of the mix");
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);

  ReportFile file(json_file);
  use_primary_cuda_context(0);
  const auto facts = cuda_device_facts(0);
  std::vector<Shape> mix = kMix;
  if (!only.empty()) {
    const auto cross = only.find('x');
    if (cross == std::string::npos) throw std::runtime_error("--shape: expected ROWSxCOLS, got " + only);
    mix = {{std::stoll(only.substr(0, cross)), std::stoll(only.substr(cross + 1))}};
  }
  const CudaStream stream;
  const Weights weights(mix, static_cast<std::uint64_t>(gigabytes * 1e9));
  fill(weights, stream);
  const GpuCast batch(kFp8, weights.jobs);
  const GpuDigest digest(digest_jobs(weights));
  const GpuRead reader(weights.codes.get(), weights.codes.bytes());
  GpuFindings findings(weights.slots());
  const std::uint64_t codes = weights.codes.bytes();

  std::vector<GpuCase> cases;
  cases.push_back(
      {"copy", [&](const CudaStream& s) { copy_async(weights.codes.get(), weights.source.get(), codes, s); }});
  cases.push_back({"cast", [&](const CudaStream& s) { batch.launch_without_digest(s, findings); }});
  cases.push_back({"cast and digest", [&](const CudaStream& s) { batch.launch(s, kVersion, findings); }});
  cases.push_back({"read", [&](const CudaStream& s) { reader.launch(s); }});
  cases.push_back({"digest", [&](const CudaStream& s) { digest.launch(s, kVersion, findings); }});
  const std::vector<int> caps = {4, 8, 16, 32};
  for (const int cap : caps) {
    cases.push_back({fmt::format("cast and digest, {} SMs", cap),
                     [&, cap](const CudaStream& s) { batch.launch(s, kVersion, findings, cap); }});
  }
  run_rounds(cases, rounds, stream);
  const bool right = verify(weights, batch, digest, 0, stream) && verify(weights, batch, digest, 8, stream);

  const auto rate = [&](const std::string& name, double bytes) {
    return spread_of(case_of(cases, name).seconds).map([&](double seconds) { return bytes / seconds / 1e9; });
  };
  const double copied = 2 * static_cast<double>(codes);
  const Spread copy = rate("copy", copied);
  const Spread read_rate = rate("read", static_cast<double>(codes));
  nlohmann::json result = {{"bench", "cast"},
                           {"device", facts.name},
                           {"multiprocessors", facts.multiprocessors},
                           {"bf16_gb", 2e-9 * static_cast<double>(weights.values)},
                           {"matrices", weights.jobs.size()},
                           {"shapes", only.empty() ? "7168x2048, 4096x1536, 4096x4096, 7168x576" : only},
                           {"rounds", rounds},
                           {"verified", right},
                           {"copy_gb_per_s", copy.json()},
                           {"read_gb_per_s", read_rate.json()}};
  fmt::print("{}, {} SMs; {:.2f} GB of BF16, {} matrices of {}; median of {} [min max]\n", facts.name,
             facts.multiprocessors, 2e-9 * static_cast<double>(weights.values), weights.jobs.size(),
             result["shapes"].get<std::string>(), rounds);
  const auto row = [&](const std::string& name, double bytes, const Spread* limit, const std::string& limit_name,
                       const std::string& key) {
    const Spread ms = spread_of(case_of(cases, name).seconds).map([](double seconds) { return 1e3 * seconds; });
    const Spread gb = rate(name, bytes);
    fmt::print("{:26} {:8.3f} ms [{:8.3f} {:8.3f}]  {:7.1f} GB/s", name, ms.median, ms.least, ms.most, gb.median);
    if (limit != nullptr) {
      const Spread share = gb.map([&](double value) { return value / limit->median; });
      fmt::print("  {:5.1f} % of {}", 100 * share.median, limit_name);
      result[key] = {{"ms", ms.json()}, {"gb_per_s", gb.json()}, {"share_of_" + limit_name, share.json()}};
    }
    fmt::print("\n");
  };
  row("copy", copied, nullptr, "", "");
  row("read", static_cast<double>(codes), nullptr, "", "");
  row("cast", weights.cast_bytes(), &copy, "copy", "cast");
  row("cast and digest", weights.cast_bytes(), &copy, "copy", "cast_digest");
  row("digest", static_cast<double>(codes), &read_rate, "read", "digest");
  for (const int cap : caps) {
    const auto name = fmt::format("cast and digest, {} SMs", cap);
    row(name, weights.cast_bytes(), &copy, "copy", fmt::format("cast_digest_{}_sms", cap));
    result[fmt::format("cast_digest_{}_sms", cap)]["fp8_gb_per_s"] = rate(name, static_cast<double>(codes)).json();
    fmt::print("{:26} {:.1f} GB/s of FP8 out\n", "", rate(name, static_cast<double>(codes)).median);
  }
  fmt::print("bytes, scales and digests {}\n", right ? "verified" : "WRONG");
  file.keep(result.dump(1) + "\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "cast_bench: {}\n", error.what());
    return 1;
  }
}

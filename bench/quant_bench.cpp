// How fast one core casts, inspects and digests BF16 weights, beside memcpy of the same bytes.
//
// Runs are interleaved: each round runs every case once, on a chunk that no case has touched for long (the weights are
// larger than the caches), into a scratch buffer that is reused, as a sender does. Every output is compared with the
// reference's after the clock has stopped. GB/s count the BF16 bytes read.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "quant/cast.h"
#include "transport/base/report_file.h"

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;
constexpr DigestFrame kFrame = {12345, 1 << 20, 0, 0};

struct Weights {
  std::int64_t rows;
  std::int64_t cols;
  std::vector<std::uint16_t> values;
  std::vector<std::vector<float>> amax;  // of each chunk; a chunk has `rows` rows
  std::vector<std::byte> codes;          // what the reference makes of them
  std::vector<CastResult> cast_results;
  std::vector<CastResult> copy_results;

  [[nodiscard]] std::size_t chunk_values() const { return static_cast<std::size_t>(rows * cols); }
  [[nodiscard]] std::size_t chunk_bytes() const { return 2 * chunk_values(); }
  [[nodiscard]] const std::byte* bytes(std::size_t chunk) const {
    return reinterpret_cast<const std::byte*>(values.data() + chunk * chunk_values());
  }
  [[nodiscard]] SourceMatrix matrix(std::size_t chunk) const {
    return {bytes(chunk), SourceType::bf16, rows, cols, cols, 1};
  }
};

Weights make_weights(std::int64_t chunk_mib, std::int64_t cols, std::int64_t total_mib) {
  const std::int64_t rows = std::max<std::int64_t>(1, chunk_mib * 1024 * 1024 / 2 / cols);
  const auto chunks = static_cast<std::size_t>(std::max<std::int64_t>(2, total_mib / chunk_mib));
  Weights weights = {rows, cols, {}, {}, {}, {}, {}};
  weights.values.resize(chunks * weights.chunk_values());
  weights.codes.resize(weights.values.size());
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<std::uint16_t> sample(1 << 20);
  for (auto& value : sample) value = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(normal(random)) >> 16);
  for (auto& value : weights.values) value = sample[random() % sample.size()];
  std::vector<std::byte> copy(weights.chunk_bytes());
  for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
    const auto matrix = weights.matrix(chunk);
    auto& amax = weights.amax.emplace_back(blocks_touched(matrix, {}));
    (void)block_amax(matrix, {}, amax, CastKernel::reference);
    weights.cast_results.push_back(cast(matrix, kFp8, {}, amax, weights.codes.data() + chunk * weights.chunk_values(),
                                        cols, kFrame, CastKernel::reference));
    weights.copy_results.push_back(inspect(matrix, kFrame, CastKernel::reference));
  }
  return weights;
}

struct Case {
  std::string name;
  std::function<void(std::size_t chunk)> run;
  std::function<bool(std::size_t chunk)> is_right;
  std::vector<double> seconds = {};
};

struct Scratch {
  std::vector<std::byte> output;
  std::vector<float> amax;
  CastResult result;
  Digest digest = 0;
};

void add_kernel_cases(std::vector<Case>& cases, const Weights& weights, Scratch& scratch, CastKernel kernel,
                      const std::string& name) {
  const auto copy_is_right = [&](std::size_t chunk) {
    return std::memcmp(scratch.output.data(), weights.bytes(chunk), weights.chunk_bytes()) == 0;
  };
  cases.push_back({"cast to fp8, " + name,
                   [&, kernel](std::size_t chunk) {
                     scratch.result = cast(weights.matrix(chunk), kFp8, {}, weights.amax[chunk], scratch.output.data(),
                                           weights.cols, kFrame, kernel);
                   },
                   [&](std::size_t chunk) {
                     const auto* codes = weights.codes.data() + chunk * weights.chunk_values();
                     return std::memcmp(scratch.output.data(), codes, weights.chunk_values()) == 0 &&
                            scratch.result.digest == weights.cast_results[chunk].digest;
                   }});
  cases.push_back({"copy as bf16, " + name,
                   [&, kernel](std::size_t chunk) {
                     scratch.result = cast(weights.matrix(chunk), Recipe::bf16, {}, {}, scratch.output.data(),
                                           2 * weights.cols, kFrame, kernel);
                   },
                   [&, copy_is_right](std::size_t chunk) {
                     return copy_is_right(chunk) && scratch.result.digest == weights.copy_results[chunk].digest;
                   }});
  cases.push_back({"inspect, " + name,
                   [&, kernel](std::size_t chunk) { scratch.result = inspect(weights.matrix(chunk), kFrame, kernel); },
                   [&](std::size_t chunk) { return scratch.result.digest == weights.copy_results[chunk].digest; }});
  cases.push_back({"amax of blocks, " + name,
                   [&, kernel](std::size_t chunk) {
                     scratch.result.bad = block_amax(weights.matrix(chunk), {}, scratch.amax, kernel);
                   },
                   [&](std::size_t chunk) { return scratch.amax == weights.amax[chunk]; }});
}

std::vector<Case> make_cases(const Weights& weights, Scratch& scratch) {
  std::vector<Case> cases;
  cases.push_back(
      {"memcpy",
       [&](std::size_t chunk) { std::memcpy(scratch.output.data(), weights.bytes(chunk), weights.chunk_bytes()); },
       [&](std::size_t chunk) {
         return std::memcmp(scratch.output.data(), weights.bytes(chunk), weights.chunk_bytes()) == 0;
       }});
  cases.push_back({"digest",
                   [&](std::size_t chunk) {
                     scratch.digest =
                         digest_rows(weights.bytes(chunk), static_cast<std::uint64_t>(weights.rows),
                                     static_cast<std::uint64_t>(2 * weights.cols), 2 * weights.cols, kFrame);
                   },
                   [&](std::size_t chunk) { return scratch.digest == weights.copy_results[chunk].digest; }});
  add_kernel_cases(cases, weights, scratch, CastKernel::reference, "reference");
  if (is_available(CastKernel::avx2)) add_kernel_cases(cases, weights, scratch, CastKernel::avx2, "avx2");
  if (is_available(CastKernel::avx512)) add_kernel_cases(cases, weights, scratch, CastKernel::avx512, "avx512");
  return cases;
}

// False when an output was wrong.
bool run_rounds(std::vector<Case>& cases, const Weights& weights, int rounds) {
  std::size_t chunk = 0;
  bool all_right = true;
  for (int round = -1; round < rounds; ++round) {  // the first warms up
    for (auto& one : cases) {
      const auto start = std::chrono::steady_clock::now();
      one.run(chunk);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      if (!one.is_right(chunk)) {
        fmt::print(stderr, "quant_bench: {}: wrong output for chunk {}\n", one.name, chunk);
        all_right = false;
      }
      if (round >= 0) one.seconds.push_back(taken.count());
      chunk = (chunk + 1) % weights.amax.size();
    }
  }
  return all_right;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

nlohmann::json report(std::vector<Case>& cases, const Weights& weights, bool all_right) {
  const double bytes = static_cast<double>(weights.chunk_bytes());
  nlohmann::json results = nlohmann::json::array();
  double memcpy_rate = 0;
  for (auto& one : cases) {
    std::ranges::sort(one.seconds);
    const double rate = bytes / one.seconds[one.seconds.size() / 2] / 1e9;
    if (memcpy_rate == 0) memcpy_rate = rate;
    results.push_back({{"case", one.name},
                       {"gb_per_s", rate},
                       {"best_gb_per_s", bytes / one.seconds.front() / 1e9},
                       {"worst_gb_per_s", bytes / one.seconds.back() / 1e9},
                       {"ratio_to_memcpy", rate / memcpy_rate}});
  }
  return {{"bench", "quant"},
          {"cpu", cpu_name()},
          {"chunk_bytes", weights.chunk_bytes()},
          {"cols", weights.cols},
          {"chunks", weights.amax.size()},
          {"rounds", cases.front().seconds.size()},
          {"verified", all_right},
          {"results", results}};
}

void print(const nlohmann::json& result) {
  fmt::print("{}, one core; chunks of {} KiB, {} columns; median of {} [worst best]; GB/s of BF16 read\n",
             result["cpu"].get<std::string>(), result["chunk_bytes"].get<std::size_t>() / 1024,
             result["cols"].get<std::int64_t>(), result["rounds"].get<std::size_t>());
  for (const auto& one : result["results"]) {
    fmt::print("{:26} {:7.2f} [{:6.2f} {:6.2f}]  {:5.2f} x memcpy\n", one["case"].get<std::string>(),
               one["gb_per_s"].get<double>(), one["worst_gb_per_s"].get<double>(), one["best_gb_per_s"].get<double>(),
               one["ratio_to_memcpy"].get<double>());
  }
}

int run(int argc, char** argv) {
  std::int64_t chunk_mib = 4;
  std::int64_t cols = 4096;
  std::int64_t total_mib = 256;
  int rounds = 21;
  std::string json_file;
  CLI::App app("How fast one core casts, inspects and digests BF16 weights, beside memcpy of the same bytes");
  app.add_option("--chunk-mib", chunk_mib, "BF16 MiB per run")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--cols", cols, "columns of the matrix")->check(CLI::Range(1, 1 << 19))->capture_default_str();
  app.add_option("--total-mib", total_mib, "BF16 MiB in all; more than the last cache")
      ->check(CLI::Range(2, 65536))
      ->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);

  ReportFile file(json_file);
  const Weights weights = make_weights(chunk_mib, cols, total_mib);
  Scratch scratch = {std::vector<std::byte>(weights.chunk_bytes()), std::vector<float>(weights.amax[0].size()), {}};
  auto cases = make_cases(weights, scratch);
  const bool all_right = run_rounds(cases, weights, rounds);
  const auto result = report(cases, weights, all_right);
  print(result);
  file.keep(result.dump(1) + "\n");
  return all_right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "quant_bench: {}\n", error.what());
    return 1;
  }
}

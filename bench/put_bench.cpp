// How fast puts go from one process's GPU memory into another's, on the same GPU or another one, beside the driver's
// copies between the same devices, made by one process.
//
// Rounds run every case once: a put of all bytes in chunks, then flush and signal; copies of all bytes in the same
// chunks, one after the other on one stream. After the rounds the receiver's digest of its memory is compared with the
// sender's.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "bench/gpu_receiver.h"
#include "bench/spread.h"
#include "transport/base/report_file.h"

using namespace weightcast;

namespace {

int run(int argc, char** argv) {
  std::uint64_t total_mib = 2048;
  int rounds = 15;
  std::string json_file;
  int source_device = 0, target_device = 0;
  CLI::App app("How fast the fabric puts between the GPU memories of two processes");
  app.add_option("--source-device", source_device, "the sender's GPU")->check(CLI::Range(0, 63))->capture_default_str();
  app.add_option("--target-device", target_device, "the receiver's GPU")
      ->check(CLI::Range(0, 63))
      ->capture_default_str();
  app.add_option("--total-mib", total_mib, "bytes of one round")->check(CLI::Range(64, 32768))->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  const std::uint64_t total = total_mib * MiB;
  const GpuReceiver receiver(total, target_device);
  use_primary_cuda_context(target_device);
  const DeviceBuffer other(total);
  use_primary_cuda_context(source_device);
  reach_cuda_device(target_device);
  const CudaStream stream;
  const DeviceBuffer source(total);
  PinnedBuffer sample(16 * MiB);
  for (std::uint64_t word = 0; word < sample.bytes() / 8; ++word) {
    const std::uint64_t value = (word + 1) * 0x9E3779B97F4A7C15;
    std::memcpy(sample.get() + 8 * word, &value, sizeof value);
  }
  for (std::uint64_t at = 0; at < total; at += sample.bytes()) {
    copy_async(source.get() + at, sample.get(), sample.bytes(), stream);
  }
  stream.synchronize();
  GpuConnection connection(receiver);
  Fabric& fabric = *connection.fabric;
  const RegionId region = fabric.register_memory({source.get(), total, MemoryKind::cuda});
  connection.connect();
  fabric.set_active(true);

  const auto deadline = Deadline::after(Milliseconds(120000));
  const auto put_all = [&](std::uint64_t chunk) {
    Tally tally;
    for (std::uint64_t at = 0; at < total; at += chunk) {
      const Put put{connection.peer, region, at, 0, at, std::min(chunk, total - at), &tally};
      throw_if_failed(fabric.put(put, deadline));
    }
    throw_if_failed(fabric.signal(connection.peer, {}, &tally, deadline));
    throw_if_failed(tally.wait(deadline, "the puts"));
  };
  const auto copy_all = [&](std::uint64_t chunk) {
    for (std::uint64_t at = 0; at < total; at += chunk) {
      const std::uint64_t bytes = std::min(chunk, total - at);
      copy_between_devices(other.get() + at, target_device, source.get() + at, source_device, bytes, stream);
    }
    stream.synchronize();
  };
  const std::vector<std::uint64_t> chunks_mib = {1, 4, 16, 64, 256};
  struct Times {
    std::vector<double> put, copy;
  };
  std::vector<Times> seconds(chunks_mib.size());
  receiver.clear();
  for (int round = -1; round < rounds; ++round) {
    for (std::size_t at = 0; at < chunks_mib.size(); ++at) {
      const auto start = Clock::now();
      put_all(chunks_mib[at] * MiB);
      const auto between = Clock::now();
      copy_all(chunks_mib[at] * MiB);
      if (round < 0) continue;
      seconds[at].put.push_back(std::chrono::duration<double>(between - start).count());
      seconds[at].copy.push_back(seconds_since(between));
    }
  }
  const GpuDigestJob job{source.get(), 1, total, 0, {0, total / 8, 0, 0}, 0, false};
  GpuFindings findings(1);
  findings.clear(stream);
  GpuDigest({&job, 1}).launch(stream, 1, findings);
  findings.fetch(stream);
  stream.synchronize();
  const bool right = findings.digest(0) == receiver.digest();

  const auto facts = cuda_device_facts(source_device);
  const std::string path = fabric.peer_facts(connection.peer).path;
  const auto rate = [&](const std::vector<double>& of) {
    return spread_of(of).map([&](double s) { return static_cast<double>(total) / s / 1e9; });
  };
  nlohmann::json result = {{"bench", "put"},          {"device", facts.name}, {"source", source_device},
                           {"target", target_device}, {"path", path},         {"total_bytes", total},
                           {"rounds", rounds},        {"verified", right}};
  fmt::print("{}, device {} to device {}; {} MiB a round by {}; median of {} [min max]; GB/s of payload\n", facts.name,
             source_device, target_device, total_mib, path, rounds);
  for (std::size_t at = 0; at < chunks_mib.size(); ++at) {
    const Spread put = rate(seconds[at].put);
    const Spread copy = rate(seconds[at].copy);
    fmt::print("{:3} MiB: put {:8.1f} [{:.1f} {:.1f}]  copy {:8.1f} [{:.1f} {:.1f}]  {:5.1f} %\n", chunks_mib[at],
               put.median, put.least, put.most, copy.median, copy.least, copy.most, 100 * put.median / copy.median);
    result[fmt::format("{}_mib", chunks_mib[at])] = {
        {"put_gb_per_s", put.json()}, {"copy_gb_per_s", copy.json()}, {"share_of_copy", put.median / copy.median}};
  }
  fmt::print("landed bytes {}\n", right ? "verified" : "WRONG");
  fabric.set_active(false);
  file.keep(result.dump(1) + "\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "put_bench: {}\n", error.what());
    return 1;
  }
}

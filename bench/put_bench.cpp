// How fast puts go from one process's GPU memory into another's on the same GPU, beside a copy within one process.
//
// Rounds run every case once: a put of all bytes in chunks, then flush and signal. After the rounds the receiver's
// digest of its memory is compared with the sender's.
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
  CLI::App app("How fast the fabric puts between the GPU memories of two processes on one GPU");
  app.add_option("--total-mib", total_mib, "bytes of one round")->check(CLI::Range(64, 32768))->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  const std::uint64_t total = total_mib * MiB;
  const GpuReceiver receiver(total);
  use_primary_cuda_context(0);
  const CudaStream stream;
  const DeviceBuffer source(total);
  const DeviceBuffer other(total);
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
  const std::vector<std::uint64_t> chunks = {1, 4, 16, 64, 256};
  std::vector<std::vector<double>> seconds(chunks.size() + 1);
  receiver.clear();
  for (int round = -1; round < rounds; ++round) {
    for (std::size_t at = 0; at <= chunks.size(); ++at) {
      const auto start = Clock::now();
      if (at < chunks.size()) {
        put_all(chunks[at] * MiB);
      } else {
        copy_async(other.get(), source.get(), total, stream);
        stream.synchronize();
      }
      if (round >= 0) seconds[at].push_back(seconds_since(start));
    }
  }
  const GpuDigestJob job{source.get(), 1, total, 0, {0, total / 8, 0, 0}, 0, false};
  GpuFindings findings(1);
  findings.clear(stream);
  GpuDigest({&job, 1}).launch(stream, 1, findings);
  findings.fetch(stream);
  stream.synchronize();
  const bool right = findings.digest(0) == receiver.digest();

  const auto facts = cuda_device_facts(0);
  const auto rate = [&](std::size_t at) {
    return spread_of(seconds[at]).map([&](double s) { return static_cast<double>(total) / s / 1e9; });
  };
  const Spread copy = rate(chunks.size());
  nlohmann::json result = {{"bench", "put"},
                           {"device", facts.name},
                           {"path", fabric.peer_facts(connection.peer).path},
                           {"total_bytes", total},
                           {"rounds", rounds},
                           {"verified", right},
                           {"copy_in_one_process_gb_per_s", copy.json()}};
  fmt::print("{}; {} MiB a round by {}; median of {} [min max]; GB/s of payload\n", facts.name, total_mib,
             fabric.peer_facts(connection.peer).path, rounds);
  fmt::print("copy in one process    {:8.1f} [{:.1f} {:.1f}]\n", copy.median, copy.least, copy.most);
  for (std::size_t at = 0; at < chunks.size(); ++at) {
    const Spread gb = rate(at);
    fmt::print("put, {:3} MiB chunks    {:8.1f} [{:.1f} {:.1f}]  {:5.1f} % of the copy\n", chunks[at], gb.median,
               gb.least, gb.most, 100 * gb.median / copy.median);
    result[fmt::format("put_{}_mib", chunks[at])] = {{"gb_per_s", gb.json()},
                                                     {"share_of_copy", gb.median / copy.median}};
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

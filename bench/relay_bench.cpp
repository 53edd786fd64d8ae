// The same bytes to two processes: put to both by the source, or to the first alone, which passes each chunk on once
// its signal says that it is there. The second way is what a plan's relay is, made by hand with the fabric's puts and
// signals: trainers and servers do not execute a plan's relay yet.
//
// Rounds run both ways once. After each, both receivers' digests are compared with the source's.
#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <exception>
#include <optional>
#include <thread>

#include "bench/gpu_receiver.h"
#include "bench/spread.h"
#include "transport/base/report_file.h"

using namespace weightcast;

namespace {

constexpr int kHost = -1;
constexpr Milliseconds kPatience{60000};

struct Load {
  std::uint64_t bytes = 0;
  std::uint64_t chunk_bytes = 0;
  [[nodiscard]] std::uint64_t chunks() const { return (bytes + chunk_bytes - 1) / chunk_bytes; }
};

// One region of a fabric: of a GPU's memory, or of host memory that peers store into.
class Holding {
 public:
  Holding(Fabric& fabric, std::uint64_t bytes, int device)
      : fabric_(fabric), bytes_(bytes), is_on_gpu_(device != kHost) {
    if (!is_on_gpu_) {
      region_ = fabric.allocate(bytes);
      memory_ = fabric.memory(region_).address;
      return;
    }
    use_primary_cuda_context(device);
    stream_.emplace();
    buffer_ = DeviceBuffer(bytes);
    memory_ = buffer_.get();
    region_ = fabric.register_memory({memory_, bytes, MemoryKind::cuda});
  }
  Holding(const Holding&) = delete;
  Holding& operator=(const Holding&) = delete;
  ~Holding() { fabric_.release(region_); }
  [[nodiscard]] RegionId region() const { return region_; }
  // With the pattern, again and again.
  void fill(const std::byte* pattern, std::uint64_t pattern_bytes) {
    for (std::uint64_t at = 0; at < bytes_; at += pattern_bytes) {
      const std::uint64_t bytes = std::min(pattern_bytes, bytes_ - at);
      if (is_on_gpu_) {
        copy_async(memory_ + at, pattern, bytes, *stream_);
      } else {
        std::memcpy(memory_ + at, pattern, bytes);
      }
    }
    if (is_on_gpu_) stream_->synchronize();
  }
  // Under version 1 and entry 0, as one row.
  [[nodiscard]] Digest digest() {
    const DigestFrame frame{0, bytes_ / 8, 0, 0};
    if (!is_on_gpu_) return digest_rows(memory_, 1, bytes_, 0, {digest_seed(1, 0), bytes_ / 8, 0, 0});
    const GpuDigestJob job{memory_, 1, bytes_, 0, frame, 0, false};
    GpuFindings findings(1);
    findings.clear(*stream_);
    GpuDigest({&job, 1}).launch(*stream_, 1, findings);
    findings.fetch(*stream_);
    stream_->synchronize();
    return findings.digest(0);
  }

 private:
  Fabric& fabric_;
  std::uint64_t bytes_;
  bool is_on_gpu_;
  std::optional<CudaStream> stream_;
  DeviceBuffer buffer_;
  std::byte* memory_ = nullptr;
  RegionId region_ = 0;
};

// A peer that takes the region chunk by chunk, a signal behind each.
class Target {
 public:
  Target(Fabric& fabric, const std::string& name, const Bytes& card, RegionId source, const Load& load)
      : fabric_(&fabric), source_(source), load_(load), peer_(fabric.connect(name, card, Deadline::after(kPatience))) {}
  void send(std::uint64_t chunk, Tally& tally) const {
    const Deadline deadline = Deadline::after(kPatience);
    const std::uint64_t at = chunk * load_.chunk_bytes;
    const Put put{peer_, source_, at, 0, at, std::min(load_.chunk_bytes, load_.bytes - at), &tally};
    throw_if_failed(fabric_->put(put, deadline));
    throw_if_failed(fabric_->signal(peer_, {}, &tally, deadline));
  }
  [[nodiscard]] std::string path() const { return fabric_->peer_facts(peer_).path; }

 private:
  Fabric* fabric_;
  RegionId source_;
  Load load_;
  PeerId peer_;
};

// A process that holds the bytes in the end, and may pass them on.
class Receiver {
 public:
  Receiver(const Load& load, int device) : process_([=](int in, int out) { serve(load, device, in, out); }) {}
  [[nodiscard]] Bytes card() const {
    Bytes card(process_.read<std::uint64_t>());
    process_.read(card.data(), card.size());
    return card;
  }
  void pass_on_to(const Bytes& next) const {
    const std::uint64_t size = next.size();
    process_.write("n", 1);
    process_.write(&size, sizeof size);
    process_.write(next.data(), next.size());
    (void)process_.read<std::uint64_t>();
  }
  // Clears the memory; from then on signals count.
  void start(bool passes_on) const {
    process_.write(passes_on ? "p" : "t", 1);
    (void)process_.read<std::uint64_t>();
  }
  [[nodiscard]] Clock::time_point full_at() const { return process_.read<Clock::time_point>(); }
  [[nodiscard]] Digest digest() const { return process_.read<Digest>(); }

 private:
  struct Counter : SilentListener {
    std::atomic<std::uint64_t> arrived{0};
    void on_message(std::span<const std::byte>) override { arrived.fetch_add(1, std::memory_order_release); }
  };

  static void tell(int out, std::uint64_t value) { write_whole(out, &value, sizeof value); }

  static void serve(const Load& load, int device, int in, int out) {
    Counter counter;
    const auto fabric = open_fabric(options_on_this_host(), counter);
    Holding holding(*fabric, load.bytes, device);
    fabric->set_active(true);
    const RegionId region = holding.region();
    const Bytes card = fabric->card({&region, 1});
    tell(out, card.size());
    write_whole(out, card.data(), card.size());
    std::optional<Target> next;
    for (char wish = 0; ::read(in, &wish, 1) == 1;) {
      if (wish == 'n') {
        std::uint64_t size = 0;
        read_whole(in, &size, sizeof size);
        Bytes of_next(size);
        read_whole(in, of_next.data(), size);
        next.emplace(*fabric, "the second receiver", of_next, region, load);
        tell(out, 0);
        continue;
      }
      take(load, holding, counter, wish == 'p' ? &*next : nullptr, out);
    }
  }

  static void take(const Load& load, Holding& holding, Counter& counter, const Target* next, int out) {
    const std::vector<std::byte> cleared(1 * MiB, std::byte{0xA5});
    holding.fill(cleared.data(), cleared.size());
    counter.arrived = 0;
    tell(out, 0);
    Tally passed;
    const Deadline deadline = Deadline::after(kPatience);
    for (std::uint64_t chunk = 0; chunk < load.chunks();) {
      if (chunk == counter.arrived.load(std::memory_order_acquire)) {
        if (deadline.passed()) throw Error(Code::timed_out, "the chunks did not come");
        std::this_thread::yield();
        continue;
      }
      if (next != nullptr) next->send(chunk, passed);
      ++chunk;
    }
    const auto now = Clock::now();
    throw_if_failed(passed.wait(deadline, "what was passed on"));
    write_whole(out, &now, sizeof now);
    tell(out, holding.digest());
  }

  ChildProcess process_;
};

int run(int argc, char** argv) {
  std::vector<int> devices = {0, 0, 0};
  bool host = false;
  std::uint64_t total_mib = 4096, chunk_mib = 64;
  int rounds = 11;
  std::string json_file;
  CLI::App app("The same bytes to two processes: directly, or passed on by the first");
  app.add_option("--devices", devices, "GPUs of the source and the two receivers")->expected(3)->capture_default_str();
  app.add_flag("--host", host, "host memory instead of GPUs'");
  app.add_option("--total-mib", total_mib, "bytes")->check(CLI::Range(1, 32768))->capture_default_str();
  app.add_option("--chunk-mib", chunk_mib, "bytes of a put")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  if (host) devices = {kHost, kHost, kHost};
  const Load load{total_mib * MiB, chunk_mib * MiB};
  const Receiver first(load, devices[1]);
  const Receiver second(load, devices[2]);

  SilentListener listener;
  const auto fabric = open_fabric(options_on_this_host(), listener);
  Holding source(*fabric, load.bytes, devices[0]);
  std::vector<std::byte> noise(16 * MiB);
  for (std::uint64_t word = 0; word < noise.size() / 8; ++word) {
    const std::uint64_t value = (word + 1) * 0x9E3779B97F4A7C15;
    std::memcpy(noise.data() + 8 * word, &value, sizeof value);
  }
  source.fill(noise.data(), noise.size());
  const Digest expected = source.digest();
  const Bytes to_first = first.card();
  const Bytes to_second = second.card();
  first.pass_on_to(to_second);
  const std::vector<Target> targets = {{*fabric, "the first receiver", to_first, source.region(), load},
                                       {*fabric, "the second receiver", to_second, source.region(), load}};
  fabric->set_active(true);

  bool right = true;
  const auto seconds_of = [&](bool relayed) {
    first.start(relayed);
    second.start(false);
    Tally tally;
    const auto start = Clock::now();
    for (std::uint64_t chunk = 0; chunk < load.chunks(); ++chunk) {
      targets[0].send(chunk, tally);
      if (!relayed) targets[1].send(chunk, tally);
    }
    throw_if_failed(tally.wait(Deadline::after(kPatience), "the puts"));
    const auto end = std::max(first.full_at(), second.full_at());
    right = (first.digest() == expected) && right;
    right = (second.digest() == expected) && right;
    return std::chrono::duration<double>(end - start).count();
  };
  std::vector<double> direct, relayed;
  for (int round = -1; round < rounds; ++round) {
    const double direct_s = seconds_of(false);
    const double relayed_s = seconds_of(true);
    if (round < 0) continue;
    direct.push_back(direct_s);
    relayed.push_back(relayed_s);
  }
  fabric->set_active(false);

  const auto ms = [](const std::vector<double>& of) { return spread_of(of).map([](double s) { return 1e3 * s; }); };
  const std::string device = host ? "host memory" : cuda_device_facts(devices[0]).name;
  const Spread direct_ms = ms(direct), relayed_ms = ms(relayed);
  fmt::print("{}, devices {}; {} MiB to two in chunks of {} MiB by {}; median of {} [min max]\n", device,
             fmt::join(devices, " "), total_mib, chunk_mib, targets[0].path(), rounds);
  fmt::print("put to both                   {:9.3f} ms [{:.3f} {:.3f}]\n", direct_ms.median, direct_ms.least,
             direct_ms.most);
  fmt::print("put to one, which passes it on{:9.3f} ms [{:.3f} {:.3f}]  x {:.3f}\n", relayed_ms.median,
             relayed_ms.least, relayed_ms.most, relayed_ms.median / direct_ms.median);
  fmt::print("landed bytes {}\n", right ? "verified" : "WRONG");
  const nlohmann::json result = {{"bench", "relay"},
                                 {"device", device},
                                 {"devices", devices},
                                 {"path", targets[0].path()},
                                 {"bytes", load.bytes},
                                 {"chunk_bytes", load.chunk_bytes},
                                 {"rounds", rounds},
                                 {"direct_ms", direct_ms.json()},
                                 {"relayed_ms", relayed_ms.json()},
                                 {"relayed_over_direct", relayed_ms.median / direct_ms.median},
                                 {"verified", right}};
  file.keep(result.dump(1) + "\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "relay_bench: {}\n", error.what());
    return 1;
  }
}

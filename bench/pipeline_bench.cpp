// The whole way of an update: [pinned host memory ->] amax, cast and digest -> put -> flush -> signal, into another
// process on the same GPU or another one, in batches through a ring of slots, beside the bound that the slowest stage
// or the memory sets.
//
// From pinned memory the bound is the same copies to the device alone. From device memory to another GPU it is the
// slower of the cast and the driver's copy to that GPU, each alone. Within one GPU it is 5 bytes per parameter at the
// copy bandwidth of this run: the cast reads 2 and writes 1, and the put, there a copy within the same memory, reads 1
// and writes 1. After each timed run the receiver's digest of all that landed is compared with one that was
// cast in one batch.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>

#include "bench/gpu_receiver.h"
#include "bench/gpu_rounds.h"
#include "bench/gpu_weights.h"
#include "plugin/gpu_ring.h"
#include "transport/base/report_file.h"

using namespace weightcast;

namespace {

constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;

// Some neighbouring matrices that go through one slot.
struct Batch {
  std::size_t first = 0;
  std::size_t jobs = 0;
  std::uint64_t value = 0;  // of all weights, where it begins
  std::uint64_t values = 0;
};

std::vector<Batch> batches_of(const Weights& weights, std::uint64_t chunk_bytes) {
  std::vector<Batch> batches(1);
  std::uint64_t value = 0;
  for (std::size_t job = 0; job < weights.jobs.size(); ++job) {
    const auto values = static_cast<std::uint64_t>(weights.shapes[job].values());
    if (batches.back().jobs != 0 && 2 * (batches.back().values + values) > chunk_bytes) {
      batches.push_back({job, 0, value, 0});
    }
    ++batches.back().jobs;
    batches.back().values += values;
    value += values;
  }
  return batches;
}

// When what happened, for a trace that Perfetto opens.
struct Span {
  std::size_t batch = 0;
  double start_s = 0;
  double end_s = 0;
};
struct Trace {
  std::vector<Span> copies, casts, puts;
  Span signal;
};

void write_trace(const Trace& trace, const std::string& path) {
  nlohmann::json events = nlohmann::json::array();
  const auto track = [&](int number, const std::string& name, const std::vector<Span>& spans) {
    events.push_back({{"ph", "M"}, {"pid", 1}, {"tid", number}, {"name", "thread_name"}, {"args", {{"name", name}}}});
    for (const Span& span : spans) {
      events.push_back({{"ph", "X"},
                        {"pid", 1},
                        {"tid", number},
                        {"name", fmt::format("{} {}", name, span.batch)},
                        {"ts", 1e6 * span.start_s},
                        {"dur", 1e6 * (span.end_s - span.start_s)}});
    }
  };
  track(1, "copy to the device", trace.copies);
  track(2, "cast", trace.casts);
  track(3, "put", trace.puts);
  track(4, "flush and signal", {trace.signal});
  std::ofstream(path) << nlohmann::json{{"traceEvents", events}}.dump() << "\n";
}

class Sender final : public GpuRing::Work {
 public:
  struct Shape {
    std::uint64_t chunk_bytes = 0;
    std::size_t slots = 3;
    std::size_t streams = 2;
    int multiprocessors = 0;  // for casts from device memory; 0: all
  };
  Sender(const Weights& weights, const std::byte* host, const Shape& shape, GpuConnection& connection)
      : weights_(weights),
        host_(host),
        batches_(batches_of(weights, shape.chunk_bytes)),
        connection_(connection),
        multiprocessors_(host == nullptr ? shape.multiprocessors : 0),
        ring_(shape.slots, shape.streams),
        findings_(weights.slots()),
        copied_(batches_.size()) {
    const std::size_t slots = shape.slots;
    std::uint64_t most = 0;
    for (const Batch& batch : batches_) most = std::max(most, batch.values);
    slot_bytes_ = (most + 255) / 256 * 256;
    codes_ = DeviceBuffer(slot_bytes_ * slots);
    if (host_ != nullptr) inputs_ = DeviceBuffer(2 * slot_bytes_ * slots);
    tallies_ = std::vector<Tally>(slots);
    for (std::size_t at = 0; at < batches_.size(); ++at) {
      const std::size_t slot = at % slots;
      std::vector<GpuCastJob> jobs;
      std::uint64_t offset = 0;
      for (std::size_t job = batches_[at].first; job < batches_[at].first + batches_[at].jobs; ++job) {
        jobs.push_back(weights.jobs[job]);
        if (host_ != nullptr) jobs.back().source.data = inputs_.get() + 2 * (slot * slot_bytes_ + offset);
        jobs.back().output = codes_.get() + slot * slot_bytes_ + offset;
        offset += static_cast<std::uint64_t>(weights.shapes[job].values());
      }
      casts_.emplace_back(kFp8, jobs);
    }
    region_ = connection.fabric->register_memory({codes_.get(), codes_.bytes(), MemoryKind::cuda});
    scales_ = connection.fabric->register_memory({weights.scales.get(), weights.scales.bytes(), MemoryKind::cuda});
    for (std::size_t mark = 0; mark < 4 * batches_.size() + 1; ++mark) marks_.emplace_back(CudaEvent::Kind::timed);
  }
  Sender(const Sender&) = delete;
  Sender& operator=(const Sender&) = delete;
  ~Sender() override {
    connection_.fabric->release(region_);
    connection_.fabric->release(scales_);
  }

  double run(Trace* trace) {
    trace_ = trace;
    deadline_ = Deadline::after(Milliseconds(60000));
    findings_.clear(copies_);
    copies_.synchronize();
    marks_.back().record(copies_);
    copies_.synchronize();
    start_ = Clock::now();
    throw_if_failed(ring_.run(batches_.size(), *this, deadline_));
    Tally last;
    const Put put{connection_.peer, scales_, 0, 0, weights_.values, weights_.scales.bytes(), &last};
    throw_if_failed(connection_.fabric->put(put, deadline_));
    if (trace != nullptr) trace->signal.start_s = seconds_since(start_);
    throw_if_failed(connection_.fabric->signal(connection_.peer, {}, &last, deadline_));
    throw_if_failed(last.wait(deadline_, "the signal"));
    const double seconds = seconds_since(start_);
    for (Tally& tally : tallies_) throw_if_failed(tally.wait(deadline_, "the puts"));
    if (trace != nullptr) finish(*trace, seconds);
    return seconds;
  }
  // The copies to the device alone.
  double copy_alone() {
    copies_.synchronize();
    const auto start = Clock::now();
    for (std::size_t batch = 0; batch < batches_.size(); ++batch) copy_in(batch, batch % ring_.slots());
    copies_.synchronize();
    return seconds_since(start);
  }
  [[nodiscard]] std::size_t batches() const { return batches_.size(); }

  // ---- GpuRing::Work ----
  bool is_free(std::size_t slot) override {
    if (tallies_[slot].outstanding() != 0) return false;
    end_put(slot);
    throw_if_failed(tallies_[slot].wait(deadline_, "the puts of a slot"));
    return true;
  }
  const CudaStream& enqueue(std::size_t batch, std::size_t slot, const CudaStream& stream) override {
    if (host_ != nullptr) {
      if (trace_ != nullptr) marks_[4 * batch].record(copies_);
      copy_in(batch, slot);
      if (trace_ != nullptr) marks_[4 * batch + 1].record(copies_);
      copied_[batch].record(copies_);
      copied_[batch].delay(stream);
    }
    if (trace_ != nullptr) marks_[4 * batch + 2].record(stream);
    casts_[batch].launch(stream, 1, findings_, multiprocessors_);
    if (trace_ != nullptr) marks_[4 * batch + 3].record(stream);
    return stream;
  }
  void deliver(std::size_t batch, std::size_t slot) override {
    if (trace_ != nullptr) trace_->puts.push_back({batch, seconds_since(start_), -1});
    const Batch& put_batch = batches_[batch];
    const Put put{connection_.peer, region_, slot * slot_bytes_, 0, put_batch.value, put_batch.values, &tallies_[slot]};
    throw_if_failed(connection_.fabric->put(put, deadline_));
  }
  bool has_to_stop() override {
    if (trace_ != nullptr) {
      for (std::size_t slot = 0; slot < tallies_.size(); ++slot) {
        if (tallies_[slot].outstanding() == 0) end_put(slot);
      }
    }
    return false;
  }

 private:
  void copy_in(std::size_t batch, std::size_t slot) {
    copy_async(inputs_.get() + 2 * slot * slot_bytes_, host_ + 2 * batches_[batch].value, 2 * batches_[batch].values,
               copies_);
  }
  void end_put(std::size_t slot) {
    if (trace_ == nullptr) return;
    for (Span& span : trace_->puts) {
      if (span.batch % ring_.slots() == slot && span.end_s < 0) span.end_s = seconds_since(start_);
    }
  }
  void finish(Trace& trace, double seconds) {
    const auto at = [&](std::size_t mark) { return marks_[mark].seconds_since(marks_.back()); };
    trace.signal.end_s = seconds;
    for (Span& span : trace.puts) span.end_s = span.end_s < 0 ? seconds : span.end_s;
    for (std::size_t batch = 0; batch < batches_.size(); ++batch) {
      if (host_ != nullptr) trace.copies.push_back({batch, at(4 * batch), at(4 * batch + 1)});
      trace.casts.push_back({batch, at(4 * batch + 2), at(4 * batch + 3)});
    }
  }

  const Weights& weights_;
  const std::byte* host_;
  std::vector<Batch> batches_;
  GpuConnection& connection_;
  const int multiprocessors_;
  GpuRing ring_;
  CudaStream copies_;
  GpuFindings findings_;
  std::vector<CudaEvent> copied_;
  std::uint64_t slot_bytes_ = 0;
  DeviceBuffer codes_;
  DeviceBuffer inputs_;
  std::vector<Tally> tallies_;
  std::vector<GpuCast> casts_;
  RegionId region_ = 0;
  RegionId scales_ = 0;
  std::vector<CudaEvent> marks_;
  Trace* trace_ = nullptr;
  Deadline deadline_ = Deadline::after(Milliseconds(0));
  Clock::time_point start_;
};

// What the receiver must hold: all codes, then all scales, cast in one batch.
Digest expected_digest(const Weights& weights, const CudaStream& stream) {
  GpuFindings findings(weights.slots());
  findings.clear(stream);
  GpuCast(kFp8, weights.jobs).launch(stream, 1, findings);
  GpuFindings sums(1);
  sums.clear(stream);
  const std::uint64_t words = (weights.values + weights.scales.bytes()) / 8;
  const std::vector<GpuDigestJob> parts = {
      {weights.codes.get(), 1, weights.values, 0, {0, words, 0, 0}, 0, false},
      {weights.scales.get(), 1, weights.scales.bytes(), 0, {0, words, 0, weights.values}, 0, false}};
  GpuDigest(parts).launch(stream, 1, sums);
  sums.fetch(stream);
  stream.synchronize();
  return sums.digest(0);
}

int run(int argc, char** argv) {
  double gigabytes = 16;
  int rounds = 11;
  std::vector<std::uint64_t> chunks_mib = {64, 256, 512};
  Sender::Shape shape;
  std::uint32_t window = FabricOptions{}.window;
  std::string json_file, trace_file;
  int target_device = 0;
  CLI::App app("Host or device memory -> cast -> put -> signal, beside what bounds it");
  app.add_option("--target-device", target_device, "the receiver's GPU; the sender's is 0")
      ->check(CLI::Range(0, 63))
      ->capture_default_str();
  app.add_option("--gb", gigabytes, "GB (1e9 bytes) of BF16")->check(CLI::Range(0.1, 60.0))->capture_default_str();
  app.add_option("--rounds", rounds, "timed runs of each case")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--chunk-mib", chunks_mib, "BF16 MiB of a batch, one or several")->capture_default_str();
  app.add_option("--streams", shape.streams, "streams that casts alternate between")
      ->check(CLI::Range(1, 4))
      ->capture_default_str();
  app.add_option("--multiprocessors", shape.multiprocessors, "that casts from device memory occupy; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--window", window, "puts in flight")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--slots", shape.slots, "scratch slots: batches cast or on the wire")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  app.add_option("--trace", trace_file,
                 "one more run from each kind of memory, as FILE.host.json and FILE.device.json "
                 "for Perfetto");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  std::uint64_t values = 0, blocks = 0;
  for (std::size_t at = 0; values * 2 < static_cast<std::uint64_t>(gigabytes * 1e9); at = (at + 1) % kMix.size()) {
    values += static_cast<std::uint64_t>(kMix[at].values());
    blocks += static_cast<std::uint64_t>(kMix[at].blocks());
  }
  const GpuReceiver receiver((values + 4 * blocks + 15) / 16 * 16, target_device);
  const bool is_remote = target_device != 0;
  use_primary_cuda_context(target_device);
  const DeviceBuffer remote(is_remote ? values : 0);  // for the copies that bound
  use_primary_cuda_context(0);
  reach_cuda_device(target_device);
  const CudaStream stream;
  const Weights weights(kMix, static_cast<std::uint64_t>(gigabytes * 1e9));
  fill(weights, stream);
  PinnedBuffer host(weights.source.bytes());
  copy_async(host.get(), weights.source.get(), host.bytes(), stream);
  stream.synchronize();
  const Digest expected = expected_digest(weights, stream);
  const GpuCast whole(kFp8, weights.jobs);
  GpuFindings findings(weights.slots());
  findings.clear(stream);
  GpuConnection connection(receiver, window);

  const auto facts = cuda_device_facts(0);
  nlohmann::json result = {{"bench", "pipeline"},
                           {"device", facts.name},
                           {"target_device", target_device},
                           {"rounds", rounds},
                           {"slots", shape.slots},
                           {"streams", shape.streams},
                           {"window", window},
                           {"multiprocessors", shape.multiprocessors},
                           {"bf16_gb", 2e-9 * static_cast<double>(values)}};
  fmt::print("{}, device 0 to device {}; {:.2f} GB of BF16, {} slots; median of {} [min max]\n", facts.name,
             target_device, 2e-9 * static_cast<double>(values), shape.slots, rounds);
  bool right = true;
  bool connected = false;
  Spread best_host, best_device;
  for (const std::uint64_t chunk : chunks_mib) {
    shape.chunk_bytes = chunk * MiB;
    Sender from_host(weights, host.get(), shape, connection);
    Sender from_device(weights, nullptr, shape, connection);
    if (!std::exchange(connected, true)) connection.connect();
    connection.fabric->set_active(true);
    std::vector<double> alone, hosts, devices, host_ratios, device_ratios;
    std::vector<GpuCase> stages = {
        {"copy",
         [&](const CudaStream& s) {
           std::byte* const to = is_remote ? remote.get() : weights.codes.get();
           copy_between_devices(to, target_device, weights.source.get(), 0, weights.values, s);
         }},
        {"cast", [&](const CudaStream& s) { whole.launch(s, 1, findings); }},
    };
    const auto check = [&](Sender& sender, Trace* trace) {
      receiver.clear();
      const double seconds = sender.run(trace);
      right = right && receiver.digest() == expected;
      return seconds;
    };
    run_rounds(stages, rounds, stream);
    const double copy_s = spread_of(case_of(stages, "copy").seconds).median;
    const double cast_s = spread_of(case_of(stages, "cast").seconds).median;
    // Within one memory the copy took 2 bytes per parameter: 5 take 2.5 times as long.
    const double bound = is_remote ? std::max(copy_s, cast_s) : 2.5 * copy_s;
    for (int round = -1; round < rounds; ++round) {
      const double alone_s = from_host.copy_alone();
      const double host_s = check(from_host, nullptr);
      const double device_s = check(from_device, nullptr);
      if (round < 0) continue;
      alone.push_back(alone_s);
      hosts.push_back(host_s);
      devices.push_back(device_s);
      host_ratios.push_back(host_s / alone_s);
      device_ratios.push_back(device_s / bound);
    }
    connection.fabric->set_active(false);
    const auto ms = [](const std::vector<double>& seconds) {
      return spread_of(seconds).map([](double s) { return 1e3 * s; });
    };
    const auto print = [](const std::string& name, const Spread& s, const std::string& more) {
      fmt::print("{:38} {:9.3f} ms [{:.3f} {:.3f}]  {}\n", name, s.median, s.least, s.most, more);
    };
    const Spread host_ratio = spread_of(host_ratios);
    const Spread device_ratio = spread_of(device_ratios);
    fmt::print("batches of {} MiB ({})\n", chunk, from_host.batches());
    print("  copies to the device alone", ms(alone),
          fmt::format("{:.1f} GB/s", 2e-9 * static_cast<double>(values) / spread_of(alone).median));
    print("  from pinned memory", ms(hosts), fmt::format("x {:.4f} of the copies alone", host_ratio.median));
    fmt::print("{:38} {:9.3f} ms, {}; cast {:.3f}, copy {:.3f} ms\n", "  bound", 1e3 * bound,
               is_remote ? "the slower stage" : "5 bytes per parameter at copy speed", 1e3 * cast_s, 1e3 * copy_s);
    print("  from device memory", ms(devices), fmt::format("x {:.4f} of that", device_ratio.median));
    result[fmt::format("{}_mib", chunk)] = {{"copy_alone_ms", ms(alone).json()},
                                            {"host_ms", ms(hosts).json()},
                                            {"bound_ms", 1e3 * bound},
                                            {"cast_ms", 1e3 * cast_s},
                                            {"put_copy_ms", 1e3 * copy_s},
                                            {"device_ms", ms(devices).json()},
                                            {"host", {{"ratio", host_ratio.json()}}},
                                            {"device", {{"ratio", device_ratio.json()}}}};
    if (best_host.median == 0 || host_ratio.median < best_host.median) best_host = host_ratio;
    if (best_device.median == 0 || device_ratio.median < best_device.median) best_device = device_ratio;
    if (!trace_file.empty() && chunk == chunks_mib.back()) {
      Trace trace;
      connection.fabric->set_active(true);
      (void)check(from_host, &trace);
      write_trace(trace, trace_file + ".host.json");
      trace = {};
      (void)check(from_device, &trace);
      write_trace(trace, trace_file + ".device.json");
      connection.fabric->set_active(false);
    }
  }
  result["path"] = connection.fabric->peer_facts(connection.peer).path;
  result["host"] = {{"ratio", best_host.json()}};
  result["device_memory"] = {{"ratio", best_device.json()}};
  result["verified"] = right;
  fmt::print("landed bytes {}\n", right ? "verified" : "WRONG");
  file.keep(result.dump(1) + "\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "pipeline_bench: {}\n", error.what());
    return 1;
  }
}

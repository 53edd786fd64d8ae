// Another process on the same GPU that others put into, and the fabric of this one that is connected to it.
#pragma once

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "quant/gpu.h"
#include "transport/cuda.h"
#include "transport/fabric.h"

namespace weightcast {

inline void write_whole(int fd, const void* bytes, std::size_t count) {
  for (const auto* at = static_cast<const char*>(bytes); count > 0;) {
    const auto written = ::write(fd, at, count);
    if (written <= 0) throw Error(Code::unavailable, "bench: the other process is gone");
    at += written;
    count -= static_cast<std::size_t>(written);
  }
}
inline void read_whole(int fd, void* bytes, std::size_t count) {
  for (auto* at = static_cast<char*>(bytes); count > 0;) {
    const auto taken = ::read(fd, at, count);
    if (taken <= 0) throw Error(Code::unavailable, "bench: the other process is gone");
    at += taken;
    count -= static_cast<std::size_t>(taken);
  }
}

// Start it before this process touches CUDA or UCX: neither survives fork().
class GpuReceiver {
 public:
  // The other process holds one region of `bytes`. After each signal it tells the digest of the words there under
  // version 1 and entry 0, as one row.
  explicit GpuReceiver(std::uint64_t bytes) : bytes_(bytes) {
    std::array<int, 2> down{};
    std::array<int, 2> up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0) throw Error(Code::unavailable, "bench: no pipes");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      serve(bytes, down[0], up[1]);
      ::_exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    to_ = down[1];
    from_ = up[0];
  }
  GpuReceiver(const GpuReceiver&) = delete;
  GpuReceiver& operator=(const GpuReceiver&) = delete;
  ~GpuReceiver() {
    ::close(to_);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  [[nodiscard]] Bytes card() const {
    std::uint64_t size = 0;
    read_whole(from_, &size, sizeof size);
    if (size == 0) throw Error(Code::unavailable, "bench: the receiving process could not start; its reason is above");
    Bytes card(size);
    read_whole(from_, card.data(), card.size());
    return card;
  }
  [[nodiscard]] Digest digest() const {
    Digest digest = 0;
    write_whole(to_, "d", 1);
    read_whole(from_, &digest, sizeof digest);
    return digest;
  }
  void clear() const {
    char done = 0;
    write_whole(to_, "c", 1);
    read_whole(from_, &done, 1);
  }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] static FabricOptions options() {
    FabricOptions options;
    options.interfaces = {"lo"};
    options.spin = true;
    return options;
  }

 private:
  struct Silent : FabricListener {
    void on_message(std::span<const std::byte>) override {}
    void on_peer_failure(PeerId, const Status&) override {}
  };

  static void serve(std::uint64_t bytes, int in, int out) {
    try {
      use_primary_cuda_context(0);
      Silent listener;
      const DeviceBuffer memory(bytes);
      const CudaStream stream;
      GpuFindings findings(1);
      const GpuDigestJob job{memory.get(), 1, bytes, 0, {0, bytes / 8, 0, 0}, 0, false};
      const GpuDigest digest({&job, 1});
      const auto fabric = open_fabric(options(), listener);
      const RegionId region = fabric->register_memory({memory.get(), bytes, MemoryKind::cuda});
      fabric->set_active(true);
      const Bytes card = fabric->card({&region, 1});
      const std::uint64_t size = card.size();
      write_whole(out, &size, sizeof size);
      write_whole(out, card.data(), card.size());
      for (char wish = 0; ::read(in, &wish, 1) == 1;) {
        if (wish == 'c') {
          fill_async(memory.get(), std::byte{0xA5}, bytes, stream);
          stream.synchronize();
          write_whole(out, "c", 1);
          continue;
        }
        findings.clear(stream);
        digest.launch(stream, 1, findings);
        findings.fetch(stream);
        stream.synchronize();
        const Digest value = findings.digest(0);
        write_whole(out, &value, sizeof value);
      }
    } catch (const std::exception& error) {
      fmt::print(stderr, "bench: the receiving process: {}\n", error.what());
      const std::uint64_t none = 0;
      [[maybe_unused]] const auto told = ::write(out, &none, sizeof none);
    }
  }

  std::uint64_t bytes_;
  pid_t pid_ = 0;
  int to_ = -1;
  int from_ = -1;
};

// This process's fabric, connected to a receiver.
struct GpuConnection {
  explicit GpuConnection(const GpuReceiver& receiver, std::uint32_t window = FabricOptions{}.window)
      : card(receiver.card()) {
    FabricOptions options = GpuReceiver::options();
    options.window = window;
    fabric = open_fabric(options, listener);
  }
  // After the source is registered: first contact wants a CUDA context.
  void connect() { peer = fabric->connect("the receiver", card, Deadline::after(Milliseconds(20000))); }

  struct Silent : FabricListener {
    void on_message(std::span<const std::byte>) override {}
    void on_peer_failure(PeerId, const Status&) override {}
  } listener;
  Bytes card;
  std::unique_ptr<Fabric> fabric;
  PeerId peer = 0;
};

}  // namespace weightcast

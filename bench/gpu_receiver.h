// Another process, on the same GPU or another one, that this one puts into; and this one's fabric, connected to it.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "bench/child_process.h"
#include "quant/gpu.h"
#include "transport/cuda.h"
#include "transport/fabric.h"

namespace weightcast {

struct SilentListener : FabricListener {
  void on_message(std::span<const std::byte>) override {}
  void on_peer_failure(PeerId, const Status&) override {}
};

inline FabricOptions options_on_this_host() {
  FabricOptions options;
  options.interfaces = {"lo"};
  options.spin = true;
  return options;
}

// Start it before this process touches CUDA or UCX.
class GpuReceiver {
 public:
  // The other process holds one region of `bytes` on `device`. After each signal it tells the digest of the words there
  // under version 1 and entry 0, as one row.
  explicit GpuReceiver(std::uint64_t bytes, int device = 0)
      : bytes_(bytes), process_([=](int in, int out) { serve(bytes, device, in, out); }) {}

  [[nodiscard]] Bytes card() const {
    Bytes card(process_.read<std::uint64_t>());
    process_.read(card.data(), card.size());
    return card;
  }
  [[nodiscard]] Digest digest() const {
    process_.write("d", 1);
    return process_.read<Digest>();
  }
  void clear() const {
    process_.write("c", 1);
    (void)process_.read<Digest>();
  }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  static void serve(std::uint64_t bytes, int device, int in, int out) {
    use_primary_cuda_context(device);
    SilentListener listener;
    const DeviceBuffer memory(bytes);
    const CudaStream stream;
    GpuFindings findings(1);
    const GpuDigestJob job{memory.get(), 1, bytes, 0, {0, bytes / 8, 0, 0}, 0, false};
    const GpuDigest digest({&job, 1});
    const auto fabric = open_fabric(options_on_this_host(), listener);
    const RegionId region = fabric->register_memory({memory.get(), bytes, MemoryKind::cuda});
    fabric->set_active(true);
    const Bytes card = fabric->card({&region, 1});
    const std::uint64_t size = card.size();
    write_whole(out, &size, sizeof size);
    write_whole(out, card.data(), card.size());
    for (char wish = 0; ::read(in, &wish, 1) == 1;) {
      findings.clear(stream);
      if (wish == 'c') {
        fill_async(memory.get(), std::byte{0xA5}, bytes, stream);
      } else {
        digest.launch(stream, 1, findings);
      }
      findings.fetch(stream);
      stream.synchronize();
      const Digest value = findings.digest(0);
      write_whole(out, &value, sizeof value);
    }
  }

  std::uint64_t bytes_;
  ChildProcess process_;
};

// This process's fabric, connected to a receiver.
struct GpuConnection {
  explicit GpuConnection(const GpuReceiver& receiver, std::uint32_t window = FabricOptions{}.window)
      : card(receiver.card()) {
    FabricOptions options = options_on_this_host();
    options.window = window;
    fabric = open_fabric(options, listener);
  }
  // After the source is registered: first contact wants a CUDA context.
  void connect() { peer = fabric->connect("the receiver", card, Deadline::after(Milliseconds(20000))); }

  SilentListener listener;
  Bytes card;
  std::unique_ptr<Fabric> fabric;
  PeerId peer = 0;
};

}  // namespace weightcast

// The fabric moves bytes between processes with one-sided puts. It knows regions and peers, no tensors.
//
// Ordering contract: a put is visible to its target once a signal() posted after it on the same peer has
// arrived, and not before. Puts have no order among themselves. (Under it: ucp_put_nbx, whose completion says
// only that the source may be reused; ucp_ep_flush_nbx; then an active message. Every put's status is checked,
// because a flush succeeds after failed puts.)
//
// Threads: one progress thread per fabric makes every call into UCX. All functions here may be called from any
// thread; they submit to that thread through a bounded queue, but for puts into memory that is mapped into this process
// (what a peer on this host allocated): these the caller stores itself, and they are complete on return. The listener
// is called on the progress thread and must not block.
//
// Errors: set-up functions throw Error; put() and signal() report through their Tally.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transport/base/status.h"
#include "transport/base/units.h"
#include "transport/memory.h"

namespace weightcast {

using Bytes = std::vector<std::byte>;
using RegionId = std::uint32_t;  // of this fabric, never reused
using PeerId = std::uint32_t;    // of this fabric, never reused

struct FabricOptions {
  // ---- behaviour ----
  std::string ucx_library;              // path of libucp.so.0; empty: the bundled wheel's, else the system's
  std::vector<std::string> interfaces;  // network interfaces UCX may listen on; {"lo"} never leaves this host
  bool allow_emulation = false;         // let UCX copy through messages where no zero-copy path exists (slow)
  bool same_host_shortcuts = true;      // shared memory, cma and cuda_ipc; false leaves the network alone
  // ---- performance ----
  std::uint32_t window = 8;          // puts in flight per peer; fewer while a link takes long over one
  std::uint32_t queue_length = 256;  // submissions waiting for the progress thread
  bool spin = false;                 // busy-poll while active() is set; needs a core of its own
};

// What was bound and what it can do: for the log, `doctor` and reports.
struct FabricFacts {
  std::string library_path;
  std::string library_version;  // as the library says it
  bool has_rdma = false;        // InfiniBand or RoCE transports present
  bool has_cuda = false;
  std::vector<std::string> transports;  // e.g. "posix", "cma", "tcp"
};

// What one peer's connection turned out to be.
struct PeerFacts {
  std::string name;
  std::string path;  // the transport that carries puts to its regions, e.g. "posix", "cma", "tcp"
  double first_contact_s = 0;
};

// Counts a batch of operations and keeps the first failure. Reusable after wait() or reset().
// The submitting thread adds, the progress thread completes; both through this class only.
class Tally {
 public:
  void add();
  void complete(const Status& status);
  // Until nothing is outstanding. Code::timed_out when the deadline passes first: the operations go on, so
  // the memory they use must not be touched and the tally must outlive them.
  [[nodiscard]] Status wait(Deadline deadline, const std::string& what);
  [[nodiscard]] std::uint64_t outstanding() const noexcept { return outstanding_.load(std::memory_order_acquire); }
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  [[nodiscard]] Status first_failure() const;
  void reset();

 private:
  std::atomic<std::uint64_t> outstanding_{0};
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  std::condition_variable done_;
  Status first_failure_;  // guarded by mutex_
};

struct Put {
  PeerId peer = 0;
  RegionId source_region = 0;  // local, registered or allocated here
  std::uint64_t source_offset = 0;
  std::uint32_t target_region = 0;  // index into the peer's card
  std::uint64_t target_offset = 0;
  std::uint64_t bytes = 0;
  Tally* tally = nullptr;  // borrowed; outlives the put
};

class FabricListener {
 public:
  FabricListener() = default;
  FabricListener(const FabricListener&) = delete;
  FabricListener& operator=(const FabricListener&) = delete;
  virtual ~FabricListener() = default;
  // A message that a peer sent with signal() or send(). `bytes` is valid during the call only, and comes from
  // a network that nobody authenticated: validate before use.
  virtual void on_message(std::span<const std::byte> bytes) = 0;
  // A peer's endpoint failed. Called once per peer; the endpoint is only marked, disconnect() closes it.
  virtual void on_peer_failure(PeerId peer, const Status& cause) = 0;
};

class Fabric {
 public:
  Fabric() = default;
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;
  virtual ~Fabric() = default;  // stops the progress thread; every tally still outstanding completes with aborted

  [[nodiscard]] virtual const FabricFacts& facts() const = 0;

  // ---- memory; never inside an update ----
  // Registers memory that somebody else owns. CUDA memory: one allocation in the units of
  // cuMemGetAddressRange; ranges over several VMM chunks are refused. The memory outlives the registration.
  [[nodiscard]] virtual RegionId register_memory(MemorySpan memory) = 0;
  // Zeroed host memory that peers on this host store into directly. Checks the free space of /dev/shm first.
  [[nodiscard]] virtual RegionId allocate(std::uint64_t bytes) = 0;
  [[nodiscard]] virtual MemorySpan memory(RegionId region) const = 0;
  virtual void release(RegionId region) = 0;

  // ---- peers; never inside an update ----
  // This worker's address and the keys of `regions`, in that order: what a peer needs to put here.
  // Versioned and length-checked; see transport/card.h.
  [[nodiscard]] virtual Bytes card(std::span<const RegionId> regions) const = 0;
  // First contact: endpoint, keys, and one probe put per region that rewrites the bytes that stand there.
  // A pair that would fall back to emulation fails here (Code::refused), unless allowed.
  [[nodiscard]] virtual PeerId connect(const std::string& name, std::span<const std::byte> card, Deadline deadline) = 0;
  [[nodiscard]] virtual PeerFacts peer_facts(PeerId peer) const = 0;
  // Bounded; operations to that peer complete with aborted at once. Those that were posted may still read their source
  // and arrive, as long as the peer's side of the connection lives: whoever reuses what they write to closes that side
  // first. Unknown peers are ignored.
  virtual void disconnect(PeerId peer) = 0;
  // Where a region of a peer's card stands in this process: memory that a peer on this host allocated, or its GPU's
  // memory, which kernels of this process then store into over what links the two. Without an address where it is not
  // mapped, or the peer is unknown. Borrowed until disconnect(), which does not wait for stores under way: they still
  // reach the memory, as posted puts may. Whoever stores there keeps the fabric's promises: only while lease_holds(),
  // and a signal covers what was complete (a kernel's: its event has come) when signal() was called.
  [[nodiscard]] virtual MemorySpan mapped(PeerId peer, std::uint32_t target_region) const = 0;

  // ---- the data path ----
  // Submits; waits at most until `deadline` while the queue is full (back-pressure). A put whose lease has run
  // out when its turn comes is not made: its tally gets Code::refused.
  [[nodiscard]] virtual Status put(const Put& put, Deadline deadline) = 0;
  // After every put already submitted to `peer`: flush, then deliver `message` (at most kMaxMessageBytes).
  // If one of those puts failed, the message is not sent and the tally gets that put's failure.
  [[nodiscard]] virtual Status signal(PeerId peer, std::span<const std::byte> message, Tally* tally,
                                      Deadline deadline) = 0;
  // A message without the flush: no order relative to puts.
  [[nodiscard]] virtual Status send(PeerId peer, std::span<const std::byte> message, Tally* tally,
                                    Deadline deadline) = 0;

  // Puts are made only before this time. The default is never: set it from the controller's heartbeat.
  virtual void set_lease(Clock::time_point until) noexcept = 0;
  [[nodiscard]] virtual bool lease_holds() const noexcept = 0;
  // True while an update runs: the progress thread may spin.
  virtual void set_active(bool active) noexcept = 0;

  static constexpr std::uint64_t kMaxMessageBytes = 8 * MiB;
};

// Opens libweightcast_ucx.so beside this library, and with it UCX; see transport/ucx/README.md for what that does
// to the process. `listener` is borrowed and outlives the fabric. Throws Error: unavailable when no usable UCX is
// found, refused when another libucp is already in the process.
[[nodiscard]] std::unique_ptr<Fabric> open_fabric(const FabricOptions& options, FabricListener& listener);

}  // namespace weightcast

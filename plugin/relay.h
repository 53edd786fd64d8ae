// Passes on what a server has verified: the bytes, from where they have landed, to the servers that its table names,
// with the digests that were proved here and a signal behind what each signal of its own senders covered.
//
// Threads: run() on one thread at a time; begin(), verified(), stop(), drop() and close() may be called from any
// meanwhile. Nothing is laid out inside run().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "plugin/byte_runs.h"
#include "plugin/landing.h"
#include "plugin/peer_links.h"
#include "plugin/signal.h"
#include "schedule/config.h"
#include "schedule/plan.h"
#include "transport/fabric.h"

namespace weightcast {

struct RelayResult {
  Status status;
  bool cut_off = false;  // peers were disconnected to end their puts
};

class Relay {
 public:
  // `catalog` outlives it.
  Relay(const Config& config, const Catalog& catalog) : config_(config), catalog_(catalog) {}
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  ~Relay() = default;

  // Prepares everything that an update needs; `fabric` and `landing` outlive the next call. Throws Error.
  void adopt(const ServerTable& table, Fabric& fabric, const LandingMemory& landing, const Routes& routes);
  // Forgets the table. Ends what runs first.
  void clear();

  // Before run(), so that nothing that is verified meanwhile is lost.
  void begin(std::uint64_t version, std::uint64_t token);
  // What `signal` covers is as it was sent; `digests` are of what each of its Forwards passes on.
  void verified(const Signal& signal, std::span<const Digest> digests);
  // Until all of the attempt is passed on, or it is stopped; when it returns, nothing is in flight.
  [[nodiscard]] RelayResult run();
  void stop(std::uint64_t token, const Status& why);
  // Ends whatever runs, and every later run() at once.
  void close();
  void drop(std::uint32_t server);
  [[nodiscard]] std::uint64_t bytes_done() const noexcept { return bytes_done_.load(std::memory_order_relaxed); }

 private:
  static constexpr Milliseconds kPoll{50};

  struct Link {
    std::uint32_t rank = 0;
    PeerId peer = 0;
    std::atomic<bool> dropped{false};
    Tally puts;
    Tally signalled;
  };
  // What one Forward passes on.
  struct Job {
    std::size_t link = 0;
    std::uint32_t ordinal = 0;
    std::uint64_t bytes = 0;
    std::vector<ByteRun> runs;  // each is one put
    Digest digest = 0;          // of the attempt, as the next
    bool is_ready = false;
  };
  struct Known {            // of one signal of a sender
    std::size_t first = 0;  // of jobs_
    std::size_t end = 0;
  };

  void lay_out(const ExpectedSender& sender, const Forward& forward, const LandingMemory& landing,
               const Routes& routes);
  [[nodiscard]] bool take(std::size_t& job);
  void pass_on(const Job& job);
  void await_signals();
  [[nodiscard]] bool drain();
  void fail(Status why);
  [[nodiscard]] bool stopped() const noexcept { return stopped_.load(std::memory_order_acquire); }

  const Config config_;
  const Catalog& catalog_;

  // ---- set by adopt() ----
  std::mutex links_mutex_;  // held to change fabric_ and links_, and by drop()
  Fabric* fabric_ = nullptr;
  std::vector<std::unique_ptr<Link>> links_;
  std::vector<Job> jobs_;
  std::map<RankKey, std::vector<Known>> signals_;  // by sender and ordinal

  // ---- of one attempt ----
  std::mutex running_;  // held by run()
  std::uint64_t version_ = 0;
  Deadline deadline_ = Deadline::after(Milliseconds(0));
  std::atomic<std::uint64_t> bytes_done_{0};
  std::atomic<bool> stopped_{true};

  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t token_ = 0;         // guarded by mutex_, as all that follow
  std::vector<std::size_t> ready_;  // jobs that may be passed on, in order; room for all
  std::size_t taken_ = 0;           // of ready_
  Status failure_;
  bool closed_ = false;
};

}  // namespace weightcast

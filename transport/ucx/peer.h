// One peer: its endpoint, its keys, and the operations that are on their way to it.
//
// Everything but queue(), name() and id() belongs to the progress thread. UCX calls back into a Peer only from
// ucp_worker_progress() and ucp_ep_close_nbx(); callbacks count, complete and post, the error callback only marks.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <string>
#include <vector>

#include "transport/card.h"
#include "transport/fabric.h"
#include "transport/ucx/context.h"
#include "transport/ucx/submissions.h"

namespace weightcast {

inline constexpr unsigned kMessageId = 1;  // of our active message

struct PeerSetup {
  PeerId id = 0;
  std::string name;
  ucp_worker_h worker = nullptr;
  FabricListener* listener = nullptr;
  const std::atomic<Clock::rep>* lease = nullptr;  // Clock ticks
  std::uint32_t window = 8;
  std::uint32_t queue_length = 256;
};

class Peer {
 public:
  // Creates the endpoint. Throws Error unreachable.
  Peer(PeerSetup setup, const Card& card);
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() = default;  // after is_closed()

  // Before the first pump(). Throws Error invalid_argument; the peer must then be closed.
  void unpack_keys(const Card& card);

  [[nodiscard]] SubmissionQueue& queue() noexcept { return queue_; }
  [[nodiscard]] const std::string& name() const noexcept { return setup_.name; }
  [[nodiscard]] PeerId id() const noexcept { return setup_.id; }
  // All of the card, probe slots too. Set once, by unpack_keys().
  [[nodiscard]] const std::vector<MemorySpan>& targets() const noexcept { return targets_; }
  // The peer's own regions are targets 1 to offered().
  [[nodiscard]] std::size_t offered() const noexcept { return offered_; }
  [[nodiscard]] bool is_probe_slot(std::size_t target) const noexcept { return target == 0 || target > offered_; }

  // Any thread: stores into a region of the peer that is mapped into this process. False: it is not, or the lease has
  // run out, or the peer is being closed; nothing was stored then, and a submission says why.
  [[nodiscard]] bool store(std::uint32_t target, std::uint64_t offset, const std::byte* from, std::uint64_t bytes);
  // Any thread: where the target stands in this process; without an address if it does not, or the peer is being
  // closed.
  [[nodiscard]] MemorySpan mapped(std::uint32_t target) const;
  // Posts what waits, as far as the window lets it. True if it posted something.
  bool pump();
  // False when everything that waits must wait for something in flight.
  [[nodiscard]] bool can_pump() {
    return queue_.next_is([this](const Submission& next) { return fits(next); });
  }
  // What waits is dropped with aborted, and the tallies of what is in flight end with it too: see disconnect().
  void start_close();
  // Closed, but UCX still has operations of it in flight, on a connection that has not failed. Closing a tcp endpoint
  // in that state corrupts UCX 1.22 (uct_tcp_iface_handle_events calls into freed memory), so it is left to end.
  [[nodiscard]] bool lingers() const { return closing_ && failure_.ok() && transfers_ + messages_ > 0; }
  // Until true, call it again after progress; then everything of UCX's is gone from this object. Never throws.
  [[nodiscard]] bool is_closed();
  [[nodiscard]] bool close_is_overdue() const { return Clock::now() > close_by_ + Milliseconds(3000); }
  // Kept until the peer goes: memory and tallies of a connect() that ended early.
  void keep(std::shared_ptr<void> thing) { kept_.push_back(std::move(thing)); }
  // The transport that carries puts to the target, as far as UCX tells: "posix" is mapped here, see store().
  [[nodiscard]] std::string path_to(std::uint32_t target) const;

 private:
  // Puts since one signal up to and with the next.
  struct Batch {
    std::uint32_t outstanding = 0;
    Status failure;
  };
  struct Flight {
    Peer* peer = nullptr;
    Submission what;
    Clock::time_point posted{};
    std::uint64_t batch = 0;  // a put's own; of a flush or signal: the one it closes
    bool flushed = false;
    bool in_use = false;
  };

  [[nodiscard]] Flight* take_next();
  [[nodiscard]] bool fits(const Submission& next) const;
  void post(Flight& flight);
  void post_transfer(Flight& flight);
  void post_flush(Flight& flight);
  void post_message(Flight& flight);
  void transfer_done(Flight& flight, ucs_status_t status);
  void end_transfer(Flight& flight, const Status& result);
  void flush_done(Flight& flight, ucs_status_t status);
  void finish(Flight& flight, const Status& status);
  void advance_signals();
  void drop_waiting(const Status& why);
  void end_tallies();
  [[nodiscard]] Status failure_of(const Submission& what, ucs_status_t status) const;
  [[nodiscard]] Status reason_not_to_post(const Submission& what) const;
  [[nodiscard]] bool lease_holds() const noexcept {
    return Clock::now().time_since_epoch().count() < setup_.lease->load(std::memory_order_acquire);
  }
  [[nodiscard]] bool is_host(std::uint32_t target) const { return targets_[target].kind == MemoryKind::host; }
  [[nodiscard]] Batch& batch(std::uint64_t number) { return batches_[number % batches_.size()]; }
  [[nodiscard]] ucp_request_param_t parameters(Flight& flight, ucp_send_nbx_callback_t done) const;

  static void on_endpoint_error(void* peer, ucp_ep_h, ucs_status_t status);
  static void on_transfer_done(void* request, ucs_status_t status, void* flight);
  static void on_flush_done(void* request, ucs_status_t status, void* flight);
  static void on_message_done(void* request, ucs_status_t status, void* flight);

  PeerSetup setup_;
  SubmissionQueue queue_;
  ucp_ep_h endpoint_ = nullptr;
  std::vector<UcxRkey> rkeys_;
  std::vector<MemorySpan> targets_;         // addresses in the peer
  mutable std::shared_mutex mapped_mutex_;  // shared by those who store: they are done before the mapping goes
  std::vector<std::byte*> mapped_;  // guarded by mapped_mutex_: targets' addresses here, null where there is none
  std::size_t offered_ = 0;
  std::vector<Flight> flights_;  // `window` for transfers, as many for flushes and messages
  std::vector<Batch> batches_;
  std::vector<Flight*> signals_;  // flushes and signals whose flush is under way, oldest first
  std::uint64_t newest_batch_ = 0;
  std::uint32_t allowed_ = 0;    // transfers that may be in flight: the window, or fewer where the link is slow
  std::uint32_t transfers_ = 0;  // in flight
  std::uint32_t messages_ = 0;   // in flight: flush, signal, send
  Status failure_;               // of the endpoint
  bool closing_ = false;
  void* close_request_ = nullptr;
  void* last_flush_ = nullptr;
  Clock::time_point close_by_{};
  std::vector<std::shared_ptr<void>> kept_;
};

}  // namespace weightcast

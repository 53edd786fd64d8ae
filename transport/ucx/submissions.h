// What other threads ask of the progress thread, per peer: a bounded ring, so that one stopped peer holds up only
// those who submit to it. Slots are reused, so a full-speed update allocates nothing here.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "transport/fabric.h"
#include "transport/ucx/context.h"

namespace weightcast {

struct Submission {
  enum class Kind : std::uint8_t {
    put,
    get,     // the probe of first contact: reads what the probe put then rewrites
    flush,   // completes when every put before it has arrived
    signal,  // flush, then the message
    send,    // the message
  };
  Kind kind = Kind::put;
  std::shared_ptr<const MemoryMapping> local;  // put, get
  std::uint64_t local_offset = 0;
  std::uint32_t target = 0;  // index into the card's regions, the probe slot included
  std::uint64_t target_offset = 0;
  std::uint64_t bytes = 0;
  Bytes message;           // signal, send
  Tally* tally = nullptr;  // may be null
};

// Thread-safe: any thread pushes, the progress thread takes.
class SubmissionQueue {
 public:
  explicit SubmissionQueue(std::uint32_t capacity) : slots_(capacity == 0 ? 1 : capacity) {}

  // `fill(slot)` writes every field that its kind uses. Waits for room. Not ok: nothing was submitted.
  template <class Fill>
  [[nodiscard]] Status push(Deadline deadline, const std::string& peer, Fill fill) {
    std::unique_lock lock(mutex_);
    if (!room_.wait_until(lock, deadline.end(), [this] { return closed_ || count_ < slots_.size(); })) {
      return {Code::timed_out, fmt::format("{} takes nothing: timed out behind {} operations that wait for it, is it "
                                           "stopped?",
                                           peer, count_)};
    }
    if (closed_) return {Code::aborted, fmt::format("{} is being disconnected", peer)};
    auto& slot = slots_[(first_ + count_) % slots_.size()];
    fill(slot);
    if (slot.tally != nullptr) slot.tally->add();
    ++count_;
    waiting_.store(true, std::memory_order_release);
    return {};
  }

  // Swaps the oldest into `out` if there is one and `wanted(it)`.
  template <class Wanted>
  [[nodiscard]] bool take(Submission& out, Wanted wanted) {
    if (!waiting()) return false;
    {
      const std::scoped_lock lock(mutex_);
      if (count_ == 0 || !wanted(slots_[first_])) return false;
      std::swap(out, slots_[first_]);
      first_ = (first_ + 1) % slots_.size();
      --count_;
      waiting_.store(count_ > 0, std::memory_order_release);
    }
    room_.notify_one();
    return true;
  }

  template <class Wanted>
  [[nodiscard]] bool next_is(Wanted wanted) {
    if (!waiting()) return false;
    const std::scoped_lock lock(mutex_);
    return count_ > 0 && wanted(slots_[first_]);
  }

  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    room_.notify_all();
  }

  // Without the lock, so that the progress thread may look at every peer in every round.
  [[nodiscard]] bool waiting() const noexcept { return waiting_.load(std::memory_order_acquire); }

 private:
  std::mutex mutex_;
  std::condition_variable room_;
  std::vector<Submission> slots_;  // the fields below: guarded by mutex_
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  bool closed_ = false;
  std::atomic<bool> waiting_{false};
};

}  // namespace weightcast

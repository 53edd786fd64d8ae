#include <utility>

#include "transport/fabric.h"

namespace weightcast {

void Tally::add() { outstanding_.fetch_add(1, std::memory_order_relaxed); }

void Tally::complete(const Status& status) {
  // The lock is held up to the last touch: a waiter that sees zero may destroy the tally as soon as it has it.
  const std::scoped_lock lock(mutex_);
  if (!status.ok() && first_failure_.ok()) {
    first_failure_ = status;
    failed_.store(true, std::memory_order_release);
  }
  if (outstanding_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_all();
}

Status Tally::wait(Deadline deadline, const std::string& what) {
  std::unique_lock lock(mutex_);
  if (!done_.wait_until(lock, deadline.end(), [this] { return outstanding() == 0; })) {
    return {Code::timed_out, "timed out waiting for " + what + ": " + std::to_string(outstanding()) +
                                 " operations are still outstanding, their memory stays in use"};
  }
  return first_failure_;
}

Status Tally::first_failure() const {
  const std::scoped_lock lock(mutex_);
  return first_failure_;
}

void Tally::reset() {
  const std::scoped_lock lock(mutex_);
  first_failure_ = {};
  failed_.store(false, std::memory_order_release);
}

}  // namespace weightcast

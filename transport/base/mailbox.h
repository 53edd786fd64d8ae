// A bounded queue from many threads to one, with a descriptor that is readable while something waits in it.
// It is how the threads of a process talk to a loop (see plugin/): post from anywhere, take on the loop's thread.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "transport/base/handle.h"
#include "transport/base/status.h"

namespace weightcast {

// Thread-safe. T is movable.
template <class T>
class Mailbox {
 public:
  explicit Mailbox(std::size_t capacity) : capacity_(capacity), event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_.get() < 0) throw Error(Code::unavailable, "eventfd: the process has no free file descriptor");
  }

  // False when the box is full: the sender of a message that may be lost drops it, any other reports it.
  [[nodiscard]] bool post(T item) {
    {
      const std::scoped_lock lock(mutex_);
      if (items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(event_.get(), &one, sizeof one);
    return true;
  }

  [[nodiscard]] std::optional<T> take() {
    const std::scoped_lock lock(mutex_);
    if (items_.empty()) {
      std::uint64_t count = 0;
      [[maybe_unused]] const auto drained = ::read(event_.get(), &count, sizeof count);
      return std::nullopt;
    }
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }

  // Readable while items wait; fit for poll(). Owned by the mailbox.
  [[nodiscard]] int descriptor() const noexcept { return event_.get(); }

 private:
  const std::size_t capacity_;
  const FileDescriptor event_;
  std::mutex mutex_;
  std::deque<T> items_;  // guarded by mutex_
};

}  // namespace weightcast

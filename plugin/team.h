// A fixed set of threads that run one function together, again and again; between rounds they sleep.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weightcast {

// What performance.threads means on this host: for work beside an engine that computes, and for the commit's, for which
// the engine stands still.
[[nodiscard]] inline std::size_t threads_of(std::uint32_t configured) {
  return configured != 0 ? configured : std::clamp<std::size_t>(std::thread::hardware_concurrency() / 4, 1, 4);
}
[[nodiscard]] inline std::size_t commit_threads_of(std::uint32_t configured) {
  return configured != 0 ? configured : std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 4);
}

class Team {
 public:
  // `size` counts the thread that calls run(); size - 1 threads are started.
  explicit Team(std::size_t size) {
    for (std::size_t member = 1; member < size; ++member) {
      threads_.emplace_back([this, member] { serve(member); });
    }
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() {
    {
      const std::scoped_lock lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
  }

  [[nodiscard]] std::size_t size() const noexcept { return threads_.size() + 1; }

  // Calls work(0) here and work(1), work(2), ... on the other threads; returns when all have. `work` does not throw.
  void run(const std::function<void(std::size_t)>& work) {
    {
      const std::scoped_lock lock(mutex_);
      work_ = &work;
      busy_ = threads_.size();
      ++round_;
    }
    changed_.notify_all();
    work(0);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve(std::size_t member) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return ends_ || round_ != seen; });
      if (ends_) return;
      seen = round_;
      const auto* work = work_;
      lock.unlock();
      (*work)(member);
      lock.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void(std::size_t)>* work_ = nullptr;
  std::size_t busy_ = 0;
  std::uint64_t round_ = 0;
  bool ends_ = false;
  std::vector<std::jthread> threads_;  // last: joined before the rest goes
};

}  // namespace weightcast

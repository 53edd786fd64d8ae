// Units. Bytes are counted in std::uint64_t and named `..._bytes`; times in names end in `_ms`, `_s`.
// GB/s means 1e9 bytes per second everywhere.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace weightcast {

inline constexpr std::uint64_t KiB = 1024;
inline constexpr std::uint64_t MiB = 1024 * KiB;
inline constexpr std::uint64_t GiB = 1024 * MiB;

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

[[nodiscard]] inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

[[nodiscard]] constexpr double gigabytes_per_second(std::uint64_t bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0;
}

// The end of a bounded wait. Every wait in weightcast takes one.
class Deadline {
 public:
  [[nodiscard]] static Deadline after(Milliseconds wait) { return Deadline(Clock::now() + wait); }

  [[nodiscard]] bool passed() const { return Clock::now() >= end_; }
  [[nodiscard]] Clock::time_point end() const { return end_; }
  // What is left, rounded up to whole milliseconds, never negative: fit for poll().
  [[nodiscard]] int left_ms() const {
    const auto left = std::chrono::ceil<Milliseconds>(end_ - Clock::now());
    return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 1'000'000'000));
  }

 private:
  explicit Deadline(Clock::time_point end) : end_(end) {}
  Clock::time_point end_;
};

}  // namespace weightcast

// Sizes, times and ranks as people read them; decimal units. The limits are where rounding would give 1000.0 of the
// smaller.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace weightcast {

// "17.3 MB"
[[nodiscard]] inline std::string size_text(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 999'950'000) return fmt::format("{:.2f} GB", value / 1e9);
  if (bytes >= 999'950) return fmt::format("{:.1f} MB", value / 1e6);
  if (bytes >= 1'000) return fmt::format("{:.1f} kB", value / 1e3);
  return fmt::format("{} B", bytes);
}

// "1.233 s", "753.75 ms"
[[nodiscard]] inline std::string time_text(double seconds) {
  return seconds >= 0.999995 ? fmt::format("{:.3f} s", seconds) : fmt::format("{:.2f} ms", seconds * 1e3);
}

// "0-7, 64-71", of ascending ranks; not longer than a line has room for.
[[nodiscard]] inline std::string ranks_text(const std::vector<std::uint32_t>& ranks) {
  constexpr std::size_t kMostBytes = 48;
  std::string text;
  for (std::size_t begin = 0, end = 0; begin < ranks.size(); begin = end) {
    for (end = begin + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    if (text.size() > kMostBytes) return text + ", ...";
    if (begin > 0) text += ", ";
    text += end - begin == 1 ? fmt::format("{}", ranks[begin]) : fmt::format("{}-{}", ranks[begin], ranks[end - 1]);
  }
  return text;
}

}  // namespace weightcast

// Sizes and times as people read them; decimal units. The limits are where rounding would give 1000.0 of the smaller.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

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

}  // namespace weightcast

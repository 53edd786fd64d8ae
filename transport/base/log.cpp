#include "transport/base/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>

namespace weightcast {
namespace {

std::atomic<LogLevel> level{LogLevel::info};
std::atomic<int> descriptor{STDERR_FILENO};
std::mutex name_mutex;
std::string name;  // guarded by name_mutex

constexpr std::array<std::string_view, 4> kLevelNames = {"error", "warning", "info", "debug"};

}  // namespace

void set_log_level(LogLevel new_level) noexcept { level = new_level; }
void set_log_descriptor(int fd) noexcept { descriptor = fd; }

void set_log_name(std::string_view new_name) {
  const std::scoped_lock lock(name_mutex);
  name = new_name;
}

bool log_enabled(LogLevel line_level) noexcept { return line_level <= level.load(std::memory_order_relaxed); }

void write_log_line(LogLevel line_level, std::string_view line) noexcept {
  try {
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    const double seconds = std::chrono::duration<double>(since_epoch).count();
    std::string text;
    {
      const std::scoped_lock lock(name_mutex);
      text = fmt::format("{:.3f} weightcast {}{}{}: {}\n", seconds, name, name.empty() ? "" : " ",
                         kLevelNames[static_cast<std::size_t>(line_level)], line);
    }
    // A log that cannot be written must not fail an update.
    [[maybe_unused]] const auto written = ::write(descriptor, text.data(), text.size());
  } catch (...) {  // NOLINT(bugprone-empty-catch): out of memory while logging
  }
}

}  // namespace weightcast

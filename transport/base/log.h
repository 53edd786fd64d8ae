// The log: one line per event, to a file descriptor (standard error by default), never to standard output.
// Levels go by volume: error and warning are for people, info is one line per update or connection,
// debug is one line per object. Nothing is logged per put.
//
//   log_info("{} committed version {} in {:.1f} ms", who, version, stall_ms);
//
// Thread-safe: a line is one write().
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace weightcast {

enum class LogLevel : int { error = 0, warning = 1, info = 2, debug = 3 };

void set_log_level(LogLevel level) noexcept;
void set_log_descriptor(int fd) noexcept;  // borrowed; stays open as long as it is set
// Prefixed to every line of this process, e.g. "server 2".
void set_log_name(std::string_view name);

[[nodiscard]] bool log_enabled(LogLevel level) noexcept;
void write_log_line(LogLevel level, std::string_view line) noexcept;

template <class... Args>
void log_at(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) write_log_line(level, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::error, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::warning, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::info, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::debug, format, std::forward<Args>(args)...);
}

}  // namespace weightcast

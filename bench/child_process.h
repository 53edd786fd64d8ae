// A forked process at the other end of two pipes, ended with its object.
#pragma once

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <functional>

#include "transport/base/status.h"

namespace weightcast {

inline void write_whole(int fd, const void* bytes, std::size_t count) {
  for (const auto* at = static_cast<const char*>(bytes); count > 0;) {
    const auto written = ::write(fd, at, count);
    if (written <= 0) throw Error(Code::unavailable, "bench: the other process is gone");
    at += written;
    count -= static_cast<std::size_t>(written);
  }
}
inline void read_whole(int fd, void* bytes, std::size_t count) {
  for (auto* at = static_cast<char*>(bytes); count > 0;) {
    const auto taken = ::read(fd, at, count);
    if (taken <= 0) throw Error(Code::unavailable, "bench: the other process is gone; if it failed, it said why above");
    at += taken;
    count -= static_cast<std::size_t>(taken);
  }
}

// Start it before this process touches CUDA or UCX: neither survives fork().
class ChildProcess {
 public:
  // `body(in, out)` runs in the child, which ends when it returns. It ends early when `in` does.
  explicit ChildProcess(const std::function<void(int, int)>& body) {
    std::array<int, 2> down{};
    std::array<int, 2> up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0) throw Error(Code::unavailable, "bench: no pipes");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      ::close(up[0]);
      try {
        body(down[0], up[1]);
      } catch (const std::exception& error) {
        fmt::print(stderr, "bench: a receiving process: {}\n", error.what());
      }
      ::_exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    to_ = down[1];
    from_ = up[0];
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() {
    ::close(to_);
    ::close(from_);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  void write(const void* bytes, std::size_t count) const { write_whole(to_, bytes, count); }
  void read(void* bytes, std::size_t count) const { read_whole(from_, bytes, count); }
  template <class Value>
  [[nodiscard]] Value read() const {
    Value value{};
    read(&value, sizeof value);
    return value;
  }

 private:
  pid_t pid_ = 0;
  int to_ = -1;
  int from_ = -1;
};

}  // namespace weightcast

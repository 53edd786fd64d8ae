// A process to put into, stop and kill, and a fabric that is connected to it: for tests of the fabric.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/fabric_peer.h"
#include "transport/fabric.h"

namespace weightcast {

inline constexpr std::uint64_t kRegionBytes = 4 * MiB;

inline Deadline soon() { return Deadline::after(Milliseconds(5000)); }

// fabric_peer, which lies beside this program.
class PeerProcess {
 public:
  explicit PeerProcess(bool network_only) : PeerProcess(network_only ? "network" : "shortcuts") {}
  // `kind` as fabric_peer takes it.
  explicit PeerProcess(const char* kind) {
    std::array<int, 2> commands{};
    std::array<int, 2> answers{};
    REQUIRE(::pipe2(commands.data(), O_CLOEXEC) == 0);
    REQUIRE(::pipe2(answers.data(), O_CLOEXEC) == 0);
    const std::string program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "fabric_peer";
    const std::string bytes = std::to_string(kRegionBytes);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(commands[0], 0);
      ::dup2(answers[1], 1);
      ::execl(program.c_str(), "fabric_peer", kind, bytes.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(commands[0]);
    ::close(answers[1]);
    commands_ = ::fdopen(commands[1], "w");
    answers_ = ::fdopen(answers[0], "r");
    card = from_hex(answer("card"));
  }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;
  ~PeerProcess() {
    std::fclose(commands_);  // it ends at the end of its input
    std::fclose(answers_);
    if (pid_ > 0) {
      ::kill(pid_, SIGCONT);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  std::string ask(const std::string& command, const std::string& kind) {
    std::fputs((command + "\n").c_str(), commands_);
    std::fflush(commands_);
    return answer(kind);
  }
  std::uint64_t sum(int region, std::uint64_t offset, std::uint64_t bytes) {
    return std::stoull(
        ask("sum " + std::to_string(region) + " " + std::to_string(offset) + " " + std::to_string(bytes), "sum"));
  }
  std::string next_message() { return ask("message", "message"); }
  void kill_now() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  void stop() { ::kill(pid_, SIGSTOP); }
  void resume() { ::kill(pid_, SIGCONT); }

  Bytes card;

 private:
  std::string answer(const std::string& kind) {
    char* line = nullptr;
    std::size_t capacity = 0;
    const auto bytes = ::getline(&line, &capacity, answers_);
    std::string text(line, bytes > 0 ? static_cast<std::size_t>(bytes) - 1 : 0);
    std::free(line);  // NOLINT: getline allocates with malloc
    REQUIRE_MESSAGE(text.starts_with(kind), "answered: ", text);
    return text.substr(std::min(text.size(), kind.size() + 1));
  }

  pid_t pid_ = 0;
  std::FILE* commands_ = nullptr;
  std::FILE* answers_ = nullptr;
};

class Listener : public FabricListener {
 public:
  void on_message(std::span<const std::byte>) override { ++messages; }
  void on_peer_failure(PeerId, const Status& cause) override {
    CHECK(cause.code() == Code::unreachable);
    ++failures;
  }
  std::atomic<int> messages{0};
  std::atomic<int> failures{0};
};

inline FabricOptions options_for(bool network_only) {
  FabricOptions options;
  options.interfaces = {"lo"};
  options.same_host_shortcuts = !network_only;
  return options;
}

// One fabric, connected to one process.
struct Pair {
  explicit Pair(bool network_only, const FabricOptions& options)
      : process(network_only),
        fabric(open_fabric(options, listener)),
        peer(fabric->connect("server 2", process.card, soon())) {}
  explicit Pair(bool network_only) : Pair(network_only, options_for(network_only)) {}

  PeerProcess process;
  Listener listener;
  std::unique_ptr<Fabric> fabric;
  PeerId peer;
};

inline std::uint64_t sum_of(MemorySpan memory) { return weighted_sum({memory.address, memory.bytes}); }

inline void fill(MemorySpan memory, unsigned seed) {
  for (std::uint64_t i = 0; i < memory.bytes; ++i)
    memory.address[i] = static_cast<std::byte>((i * 2654435761u + seed) >> 7);
}

}  // namespace weightcast

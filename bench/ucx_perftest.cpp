#include "bench/ucx_perftest.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <sstream>
#include <thread>
#include <vector>

#include "transport/base/status.h"
#include "transport/base/units.h"

namespace weightcast {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

constexpr const char* kLongest_s = "60";
constexpr Milliseconds kToListen{5000};

// A command whose output we read; ended with this object.
class Child {
 public:
  explicit Child(Words words) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error(Code::unavailable, "bench: no pipe for ucx_perftest");
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    // Not fork(): it would write-protect the memory that is being measured.
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    const int failed = ::posix_spawnp(&pid_, arguments[0], &actions, nullptr, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    output_ = ends[0];
    if (failed == 0) return;
    ::close(output_);
    throw Error(Code::unavailable, fmt::format("bench: cannot start {}", words.front()));
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::close(output_);
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  // Until it has ended; true if it succeeded.
  bool read_all(std::string& text) {
    std::array<char, 4096> buffer{};
    for (ssize_t got = 0; (got = ::read(output_, buffer.data(), buffer.size())) > 0;) {
      text.append(buffer.data(), static_cast<std::size_t>(got));
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  pid_t pid_ = 0;
  int output_ = -1;
};

std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
}

// The overall bandwidth, sixth of the figures in the last line that has nothing but figures; the tool's MB are MiB.
double bandwidth_in(const std::string& output) {
  double gb_per_s = 0;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    if (line.find_first_not_of("0123456789., ") != std::string::npos) continue;
    std::istringstream fields(line);
    std::string field;
    for (int i = 0; i < 6; ++i) std::getline(fields, field, ',');
    if (fields) gb_per_s = std::stod(field) * static_cast<double>(MiB) / 1e9;
  }
  return gb_per_s;
}

}  // namespace

UcxPerftest::UcxPerftest(const std::string& libucp) {
  const auto folder = fs::path(libucp).parent_path();
  const auto beside = folder.parent_path() / "bin/ucx_perftest";
  if (::access(beside.c_str(), X_OK) == 0) {
    program_ = beside;
    library_folder_ = folder;  // the wheel's programs do not find their libraries alone
  } else if (std::string found; Child({"sh", "-c", "command -v ucx_perftest"}).read_all(found)) {
    program_ = found.substr(0, found.find('\n'));
  }
  std::string said;
  if (program_.empty()) {
    reason_ = "ucx_perftest is neither beside the libucp in use nor in PATH";
  } else if (!Child({"env", "LD_LIBRARY_PATH=" + library_folder_, program_, "-h"}).read_all(said)) {
    reason_ = fmt::format("{} does not run: {}", program_, said);
  }
}

double UcxPerftest::put_gb_per_s(const UcxPuts& puts) const {
  Words both = {"env",
                "UCX_TLS=" + puts.transports,
                "UCX_ALLOC_PRIO=" + puts.allocation,
                "UCX_NET_DEVICES=lo",
                "UCX_RNDV_THRESH=inf",
                "UCX_PROTO_EMULATION_ENABLE=n",
                "UCX_POSIX_ERROR_HANDLING=y",
                "UCX_WARN_UNUSED_ENV_VARS=n"};
  if (!library_folder_.empty()) both.push_back("LD_LIBRARY_PATH=" + library_folder_);
  both.insert(both.end(), {"timeout", kLongest_s, program_, "-p", std::to_string(free_port()), "-e", "-E",
                           puts.polls ? "poll" : "sleep"});
  Words sender = both;
  sender.insert(sender.end(), {"127.0.0.1", "-t", "ucp_put_bw", "-s", std::to_string(puts.chunk_bytes), "-n",
                               std::to_string(puts.count), "-w", std::to_string(puts.window), "-O",
                               std::to_string(puts.window), "-v", "-f"});
  const Child receiver(both);
  std::string said;
  for (const auto until = Clock::now() + kToListen; Clock::now() < until;) {
    said.clear();
    if (Child(sender).read_all(said)) {
      if (const double found = bandwidth_in(said); found > 0) return found;
      break;
    }
    if (said.find("refused") == std::string::npos) break;
    std::this_thread::sleep_for(Milliseconds(20));  // the receiver does not listen yet
  }
  throw Error(Code::unavailable, fmt::format("bench: {} gave no figure over {}: {}", program_, puts.transports, said));
}

}  // namespace weightcast

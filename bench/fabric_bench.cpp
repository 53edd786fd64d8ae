// How fast the fabric moves bytes to another process, beside the same bytes moved without it.
//
// One receiver process per path; each round runs every case once, so that what else the machine does hits all alike. A
// round puts `total` bytes in chunks, signals, and ends when the flush and the signal are done. Limits: memcpy into a
// mapping that both processes share; process_vm_writev; a tcp socket over the loopback, read by a thread over there.
// Every landed byte is compared after the clock has stopped. UCX's own ucx_perftest is a limit too: it puts one chunk
// over and over, so cases of the fabric that do the same stand beside it.
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "bench/ucx_perftest.h"
#include "transport/base/report_file.h"
#include "transport/fabric.h"

using namespace weightcast;

namespace {

class NoListener : public FabricListener {
 public:
  void on_message(std::span<const std::byte>) override {}
  void on_peer_failure(PeerId, const Status&) override {}
};

void write_all(int fd, const void* bytes, std::size_t count) {
  for (const auto* at = static_cast<const char*>(bytes); count > 0;) {
    const auto written = ::write(fd, at, count);
    if (written <= 0) throw Error(Code::unavailable, "bench: the other process is gone");
    at += written;
    count -= static_cast<std::size_t>(written);
  }
}

void read_all(int fd, void* bytes, std::size_t count) {
  for (auto* at = static_cast<char*>(bytes); count > 0;) {
    const auto taken = ::read(fd, at, count);
    if (taken <= 0) throw Error(Code::unavailable, "bench: the other process is gone");
    at += taken;
    count -= static_cast<std::size_t>(taken);
  }
}

FabricOptions options_for(bool network_only, bool spins) {
  FabricOptions options;
  options.spin = spins;
  options.interfaces = {"lo"};
  options.same_host_shortcuts = !network_only;
  return options;
}

// What a receiver is told, beside the region that it is to show.
constexpr std::uint8_t kBusy = 254;
constexpr std::uint8_t kIdle = 255;

// What a receiver tells: its memory, and where its plain socket listens.
struct Offer {
  std::uint64_t card_bytes = 0;
  std::uint64_t registered_address = 0;
  std::uint16_t port = 0;
};

// Reads `total` bytes over and over into the same buffer, and answers each with one byte.
void serve_socket(int listening, std::uint64_t total) {
  const int fd = ::accept(listening, nullptr, nullptr);
  std::vector<std::byte> buffer(total);
  try {
    for (;;) {
      read_all(fd, buffer.data(), total);
      write_all(fd, "k", 1);
    }
  } catch (const Error&) {
    ::close(fd);
  }
}

// The other process: offers memory, then does what each byte says that it is sent.
void receive(bool network_only, bool spins, std::uint64_t total, int in, int out) {
  NoListener listener;
  const auto fabric = open_fabric(options_for(network_only, spins), listener);
  std::vector<std::byte> plain(total);
  const std::array<RegionId, 2> regions = {fabric->allocate(total), fabric->register_memory({plain.data(), total})};
  std::memset(fabric->memory(regions[0]).address, 1, total);
  const int listening = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(listening, reinterpret_cast<sockaddr*>(&address), size);
  ::listen(listening, 1);
  ::getsockname(listening, reinterpret_cast<sockaddr*>(&address), &size);
  std::thread(serve_socket, listening, total).detach();
  const Bytes card = fabric->card(regions);
  const Offer offer{card.size(), reinterpret_cast<std::uint64_t>(plain.data()), ntohs(address.sin_port)};
  write_all(out, &offer, sizeof offer);
  write_all(out, card.data(), card.size());
  std::uint8_t wish = 0;
  while (::read(in, &wish, 1) == 1) {
    if (wish == kBusy || wish == kIdle) {
      fabric->set_active(wish == kBusy);
    } else {
      write_all(out, fabric->memory(regions.at(wish)).address, total);
    }
  }
}

// A receiver and our connection to it. Started before this process opens a fabric: UCX does not survive fork().
struct Receiver {
  Receiver(bool network, bool both_spin, std::uint64_t bytes) : network_only(network), spins(both_spin), total(bytes) {
    std::array<int, 2> down{};
    std::array<int, 2> up{};
    if (::pipe(down.data()) != 0 || ::pipe(up.data()) != 0) throw Error(Code::unavailable, "bench: no pipes");
    pid = ::fork();
    if (pid == 0) {
      ::close(down[1]);
      receive(network_only, spins, total, down[0], up[1]);
      ::_exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    to = down[1];
    from = up[0];
    read_all(from, &offer, sizeof offer);
    card.resize(offer.card_bytes);
    read_all(from, card.data(), card.size());
  }
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  ~Receiver() {
    ::close(to);
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  void open() {
    fabric = open_fabric(options_for(network_only, spins), listener);
    peer = fabric->connect("the receiver", card, Deadline::after(Milliseconds(10000)));
    source = fabric->allocate(total);
    auto* words = reinterpret_cast<std::uint64_t*>(fabric->memory(source).address);
    for (std::uint64_t i = 0; i < total / 8; ++i) words[i] = i * 0x9e3779b97f4a7c15;
  }
  // `total` bytes in all: through memory, or the first `span` bytes of it again and again.
  void put_all(std::uint32_t region, std::uint64_t chunk, std::uint64_t span) {
    const auto deadline = Deadline::after(Milliseconds(60000));
    Tally tally;
    set_active(true);
    for (std::uint64_t at = 0; at < total; at += chunk) {
      const Put put{peer, source, at % span, region, at % span, std::min(chunk, total - at), &tally};
      throw_if_failed(fabric->put(put, deadline));
    }
    throw_if_failed(fabric->signal(peer, {}, &tally, deadline));
    throw_if_failed(tally.wait(deadline, "a round of the benchmark"));
    set_active(false);
  }
  void set_active(bool active) const {
    fabric->set_active(active);
    if (spins) write_all(to, active ? &kBusy : &kIdle, 1);
  }
  void check(std::uint8_t region) {
    Bytes landed(total);
    write_all(to, &region, 1);
    read_all(from, landed.data(), total);
    if (std::memcmp(landed.data(), fabric->memory(source).address, total) != 0) {
      throw Error(Code::corrupted, "bench: what landed is not what was put");
    }
  }

  bool network_only;
  bool spins;
  std::uint64_t total;
  pid_t pid = 0;
  int to = -1;
  int from = -1;
  Offer offer;
  Bytes card;
  NoListener listener;
  std::unique_ptr<Fabric> fabric;
  PeerId peer = 0;
  RegionId source = 0;
};

struct Case {
  std::string name;
  std::string limit;              // the case that bounds it; empty: it is a limit
  std::function<double()> round;  // its GB/s
  std::string skipped = {};       // why it cannot run here
  std::vector<double> gb_per_s = {};
  [[nodiscard]] double at(double share) {
    std::sort(gb_per_s.begin(), gb_per_s.end());
    return gb_per_s[static_cast<std::size_t>(share * static_cast<double>(gb_per_s.size() - 1))];
  }
};

std::function<double()> timed(std::uint64_t bytes, std::function<void()> move) {
  return [bytes, move = std::move(move)] {
    const auto start = Clock::now();
    move();
    return gigabytes_per_second(bytes, seconds_since(start));
  };
}

int connect_socket(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw Error(Code::unreachable, "bench: the receiver's socket");
  }
  return fd;
}

void write_process_memory(pid_t pid, std::byte* from, std::uint64_t to, std::uint64_t bytes) {
  iovec local{from, bytes};
  iovec remote{reinterpret_cast<void*>(to), bytes};
  if (::process_vm_writev(pid, &local, 1, &remote, 1, 0) != static_cast<ssize_t>(bytes)) {
    throw Error(Code::unavailable, "bench: process_vm_writev is not permitted here");
  }
}

std::vector<Case> cases_for(Receiver& near, Receiver& far, std::byte* shared, int socket, std::uint64_t chunk) {
  auto* near_source = near.fabric->memory(near.source).address;
  auto* far_source = far.fabric->memory(far.source).address;
  const auto total = near.total;
  const auto each = [=](const std::function<void(std::uint64_t, std::uint64_t)>& move) {
    for (std::uint64_t at = 0; at < total; at += chunk) move(at, std::min(chunk, total - at));
  };
  return {
      {"memcpy to shared memory", "",
       timed(total, [=] { each([=](auto at, auto bytes) { std::memcpy(shared + at, near_source + at, bytes); }); })},
      {"fabric, allocated memory", "memcpy to shared memory",
       timed(total, [=, &near] { near.put_all(0, chunk, total); })},
      {"process_vm_writev", "",
       timed(total,
             [=, &near] {
               each([&](auto at, auto bytes) {
                 write_process_memory(near.pid, near_source + at, near.offer.registered_address + at, bytes);
               });
             })},
      {"fabric, registered memory", "process_vm_writev", timed(total, [=, &near] { near.put_all(1, chunk, total); })},
      {"tcp socket", "",
       timed(total,
             [=] {
               char answer = 0;
               write_all(socket, far_source, total);
               read_all(socket, &answer, 1);
             })},
      {"fabric, tcp", "tcp socket", timed(total, [=, &far] { far.put_all(1, chunk, total); })},
  };
}

// The same paths by UCX alone, and the fabric doing what its tool does.
std::vector<Case> cases_beside_ucx(Receiver& near, Receiver& far, const UcxPerftest& tool, std::uint64_t chunk) {
  struct Path {
    std::string name;
    std::string transports;
    std::string allocation;
    Receiver& receiver;
    std::uint32_t region;
    bool polls;
  };
  // Asleep over shared memory the tool at times waits for minutes: there it polls, which costs those paths nothing.
  const std::vector<Path> paths = {{"allocated memory", "posix,self", "md:posix,md:*", near, 0, true},
                                   {"registered memory", "posix,cma,self", "heap", near, 1, true},
                                   {"tcp", "tcp", "mmap,heap", far, 1, far.spins}};
  std::vector<Case> cases;
  for (const auto& path : paths) {
    const auto total = path.receiver.total;
    const UcxPuts puts{path.transports, path.allocation, path.polls, chunk, total / chunk, FabricOptions{}.window};
    cases.push_back({"ucx_perftest, " + path.name, "", [&tool, puts] { return tool.put_gb_per_s(puts); }});
    cases.back().skipped = tool.reason_not_to();
    cases.push_back({"fabric, " + path.name + ", one chunk", cases.back().name,
                     timed(total, [=, &to = path.receiver, at = path.region] { to.put_all(at, chunk, chunk); })});
  }
  return cases;
}

nlohmann::json report(std::vector<Case>& cases) {
  nlohmann::json results = nlohmann::json::array();
  for (auto& one : cases) {
    if (!one.skipped.empty()) {
      fmt::print("{:36} skipped: {}\n", one.name, one.skipped);
      results.push_back({{"case", one.name}, {"skipped", one.skipped}});
      continue;
    }
    nlohmann::json line = {
        {"case", one.name}, {"gb_per_s", one.at(0.5)}, {"worst_gb_per_s", one.at(0)}, {"best_gb_per_s", one.at(1)}};
    std::string beside;
    for (auto& limit : cases) {
      if (limit.name != one.limit || !limit.skipped.empty()) continue;
      line["limit"] = limit.name;
      line["ratio"] = one.at(0.5) / limit.at(0.5);
      beside = fmt::format("{:5.1f} % of {}", 100 * line["ratio"].get<double>(), limit.name);
    }
    fmt::print("{:36} {:6.2f} GB/s  [{:.2f} {:.2f}]  {}\n", one.name, one.at(0.5), one.at(0), one.at(1), beside);
    results.push_back(line);
  }
  return results;
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t total_mib = 256;
  std::uint64_t chunk_kib = 4096;
  int rounds = 9;
  bool spin = false;
  std::string json_path;
  CLI::App app("How fast the fabric moves bytes to another process on this host");
  app.add_option("--total-mib", total_mib, "bytes of one round");
  app.add_option("--chunk-kib", chunk_kib, "bytes of one put");
  app.add_option("--rounds", rounds, "each runs every case once");
  app.add_flag("--spin", spin, "over tcp both ends poll all the time, as ranks do that have 8 cores or more");
  app.add_option("--json", json_path, "write the figures here");
  CLI11_PARSE(app, argc, argv);
  try {
    ReportFile file(json_path);
    const auto total = total_mib * MiB;
    auto* shared = static_cast<std::byte*>(
        ::mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
    Receiver near(false, spin, total);
    Receiver far(true, spin, total);
    near.open();
    far.open();
    auto cases = cases_for(near, far, shared, connect_socket(far.offer.port), chunk_kib * KiB);
    const UcxPerftest tool(near.fabric->facts().library_path);
    for (auto& one : cases_beside_ucx(near, far, tool, chunk_kib * KiB)) cases.push_back(std::move(one));
    for (int round = -1; round < rounds; ++round) {  // the first warms up
      for (auto& one : cases) {
        if (!one.skipped.empty()) continue;
        const double gb_per_s = one.round();
        if (round >= 0) one.gb_per_s.push_back(gb_per_s);
      }
    }
    near.check(0);
    near.check(1);
    far.check(1);
    const nlohmann::json figures = {
        {"bench", "fabric"},       {"total_bytes", total}, {"chunk_bytes", chunk_kib * KiB},
        {"rounds", rounds},        {"spin", spin},         {"paths", near.fabric->peer_facts(near.peer).path},
        {"results", report(cases)}};
    file.keep(figures.dump(1) + "\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "fabric_bench: {}\n", error.what());
    return 1;
  }
}

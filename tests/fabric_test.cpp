// The fabric against real UCX and real processes. Each wait is bounded.
#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "tests/fabric_process.h"

using namespace weightcast;

namespace {

// Puts all of `source` to `target`, in chunks that no page or word fits, and signals.
void push(Pair& pair, RegionId source, std::uint32_t target, std::uint64_t chunk_bytes) {
  Tally tally;
  const auto total_bytes = pair.fabric->memory(source).bytes;
  for (std::uint64_t at = 0; at < total_bytes; at += chunk_bytes) {
    const Put put{pair.peer, source, at, target, at, std::min(chunk_bytes, total_bytes - at), &tally};
    throw_if_failed(pair.fabric->put(put, soon()));
  }
  throw_if_failed(pair.fabric->signal(pair.peer, Bytes(3, static_cast<std::byte>(target)), &tally, soon()));
  throw_if_failed(tally.wait(soon(), "the puts"));
}

}  // namespace

TEST_CASE("a signal arrives after the puts before it, with every byte, over shared memory, cma and tcp") {
  for (const bool network_only : {false, true}) {
    CAPTURE(network_only);
    Pair pair(network_only);
    CHECK(pair.fabric->peer_facts(pair.peer).path == (network_only ? "tcp" : "posix+cma"));
    std::vector<std::byte> plain(kRegionBytes);
    const RegionId allocated = pair.fabric->allocate(kRegionBytes);
    const RegionId registered = pair.fabric->register_memory({plain.data(), plain.size()});
    unsigned seed = 0;
    for (const RegionId source : {allocated, registered}) {
      for (const std::uint32_t target : {0u, 1u}) {
        for (const std::uint64_t chunk_bytes : {std::uint64_t{1237}, 300 * KiB + 1, kRegionBytes}) {
          fill(pair.fabric->memory(source), ++seed);
          push(pair, source, target, chunk_bytes);
          CHECK(pair.process.next_message() == to_hex(Bytes(3, static_cast<std::byte>(target))));
          CHECK(pair.process.sum(static_cast<int>(target), 0, kRegionBytes) == sum_of(pair.fabric->memory(source)));
        }
      }
    }
    CHECK(pair.listener.failures == 0);
  }
}

TEST_CASE("a put writes its own bytes and none beside them") {
  for (const bool network_only : {false, true}) {
    CAPTURE(network_only);
    Pair pair(network_only);
    const RegionId source = pair.fabric->allocate(4096);
    fill(pair.fabric->memory(source), 5);
    std::vector<std::byte> expected(kRegionBytes, std::byte{3});  // as fabric_peer fills region 1
    CHECK(pair.process.sum(1, 0, kRegionBytes) == weighted_sum(expected));
    Tally tally;
    std::uint64_t at = 1;
    for (const std::uint64_t bytes : {1, 2, 7, 8, 9, 63, 65, 4096}) {
      REQUIRE(pair.fabric->put({pair.peer, source, 4096 - bytes, 1, at, bytes, &tally}, soon()).ok());
      std::copy_n(pair.fabric->memory(source).address + 4096 - bytes, bytes, expected.begin() + static_cast<long>(at));
      at += bytes + 3;
    }
    REQUIRE(pair.fabric->put({pair.peer, source, 0, 1, kRegionBytes - 1, 1, &tally}, soon()).ok());
    expected.back() = pair.fabric->memory(source).address[0];
    REQUIRE(pair.fabric->signal(pair.peer, Bytes(1), &tally, soon()).ok());
    CHECK(tally.wait(soon(), "the puts").ok());
    CHECK(pair.process.next_message() == "00");
    CHECK(pair.process.sum(1, 0, kRegionBytes) == weighted_sum(expected));
  }
}

TEST_CASE("two peers are served side by side, and each answers") {
  Listener listener;
  PeerProcess first(false);
  PeerProcess second(true);
  const auto fabric = open_fabric(options_for(false), listener);
  const RegionId source = fabric->allocate(kRegionBytes);
  fill(fabric->memory(source), 9);
  Tally tally;
  for (auto* process : {&first, &second}) {
    const PeerId peer = fabric->connect(process == &first ? "server 0" : "server 1", process->card, soon());
    for (std::uint64_t at = 0; at < kRegionBytes; at += MiB) {
      REQUIRE(fabric->put({peer, source, at, 1, at, MiB, &tally}, soon()).ok());
    }
    REQUIRE(fabric->signal(peer, Bytes(2), &tally, soon()).ok());
  }
  CHECK(tally.wait(soon(), "both").ok());
  const std::vector<RegionId> none;
  const Bytes own_card = fabric->card(none);
  for (auto* process : {&first, &second}) {
    CHECK(process->next_message() == "0000");
    CHECK(process->sum(1, 0, kRegionBytes) == sum_of(fabric->memory(source)));
    process->ask("connect " + to_hex(own_card), "connected");
    process->ask("send 010203", "sent");
  }
  for (const auto deadline = soon(); listener.messages < 2 && !deadline.passed();) std::this_thread::yield();
  CHECK(listener.messages == 2);
}

TEST_CASE("messages of any size up to the limit are delivered whole, larger ones are refused") {
  for (const bool network_only : {false, true}) {
    Pair pair(network_only);
    Tally tally;
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{1}, 100 * KiB, Fabric::kMaxMessageBytes}) {
      Bytes message(bytes);
      fill({message.data(), bytes}, 3);
      REQUIRE(pair.fabric->send(pair.peer, message, &tally, soon()).ok());
      CHECK(tally.wait(soon(), "the message").ok());
      CHECK(pair.process.ask("message_sum", "message") ==
            std::to_string(bytes) + " " + std::to_string(weighted_sum(message)));
    }
    const auto too_large = pair.fabric->send(pair.peer, Bytes(Fabric::kMaxMessageBytes + 1), &tally, soon());
    CHECK(too_large.code() == Code::invalid_argument);
    CHECK(tally.outstanding() == 0);
  }
}

TEST_CASE(
    "memory that a peer on this host allocated stands in this process until it is disconnected; other memory does "
    "not") {
  Pair pair(false);
  const MemorySpan there = pair.fabric->mapped(pair.peer, 0);
  REQUIRE(there.address != nullptr);
  CHECK(there.bytes == kRegionBytes);
  CHECK(there.kind == MemoryKind::host);
  there.address[17] = std::byte{5};
  CHECK(pair.process.sum(0, 17, 1) == 5);
  CHECK(pair.fabric->mapped(pair.peer, 1).address == nullptr);  // registered only
  CHECK(pair.fabric->mapped(pair.peer, 2).address == nullptr);  // not on the card
  CHECK(pair.fabric->mapped(pair.peer + 1, 0).address == nullptr);
  pair.fabric->disconnect(pair.peer);
  CHECK(pair.fabric->mapped(pair.peer, 0).address == nullptr);
}

TEST_CASE("without a lease no put is made and its signal stays away; a new lease lets the next ones through") {
  Pair pair(false);
  const RegionId source = pair.fabric->allocate(kRegionBytes);
  fill(pair.fabric->memory(source), 4);
  const auto before = pair.process.sum(1, 0, kRegionBytes);
  CHECK(pair.fabric->lease_holds());
  pair.fabric->set_lease(Clock::now());
  CHECK_FALSE(pair.fabric->lease_holds());
  Tally tally;
  REQUIRE(pair.fabric->put({pair.peer, source, 0, 1, 0, kRegionBytes, &tally}, soon()).ok());
  REQUIRE(pair.fabric->signal(pair.peer, Bytes(1, std::byte{1}), &tally, soon()).ok());
  const auto refused = tally.wait(soon(), "the put");
  CHECK(refused.code() == Code::refused);
  CHECK(refused.message().find("server 2") != std::string::npos);
  CHECK(pair.process.sum(1, 0, kRegionBytes) == before);
  pair.fabric->set_lease(Clock::now() + std::chrono::seconds(60));
  push(pair, source, 1, MiB);
  CHECK(pair.process.next_message() == "010101");  // the first to arrive
}

TEST_CASE("what does not lie in a region, or names no peer or region, is refused before anything moves") {
  Pair pair(false);
  const RegionId source = pair.fabric->allocate(100);
  Tally tally;
  const auto code = [&](const Put& put) { return pair.fabric->put(put, soon()).code(); };
  CHECK(code({pair.peer, source, 0, 0, 0, 101, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, 1, 0, 0, 100, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, ~std::uint64_t{0}, 0, 0, 2, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, 0, 0, kRegionBytes - 1, 2, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, 0, 2, 0, 1, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, 0, ~0u, 0, 1, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source, 0, 0, 0, 0, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer + 100, source, 0, 0, 0, 1, &tally}) == Code::invalid_argument);
  CHECK(code({pair.peer, source + 100, 0, 0, 0, 1, &tally}) == Code::invalid_argument);
  CHECK(tally.outstanding() == 0);
  CHECK_THROWS_AS(static_cast<void>(pair.fabric->memory(source + 100)), Error);
  CHECK_THROWS_AS(static_cast<void>(pair.fabric->register_memory({})), Error);
  CHECK_THROWS_WITH_AS(static_cast<void>(pair.fabric->allocate(std::uint64_t{1} << 50)), doctest::Contains("/dev/shm"),
                       Error);
  Bytes card = pair.process.card;
  card.resize(card.size() - 1);
  CHECK_THROWS_AS(static_cast<void>(pair.fabric->connect("server 3", card, soon())), Error);
}

TEST_CASE("UCX leaves the process as it was: environment, signal handlers, and no processor time when idle") {
  Listener listener;
  struct sigaction before {};
  struct sigaction after {};
  ::sigaction(SIGSEGV, nullptr, &before);
  const auto fabric = open_fabric(options_for(false), listener);
  ::sigaction(SIGSEGV, nullptr, &after);
  CHECK((before.sa_handler == after.sa_handler));
  for (const char* name : {"UCX_MEM_EVENTS", "UCX_ERROR_SIGNALS", "UCX_VFS_ENABLE", "UCX_DEBUG_SIGNO"}) {
    CHECK(std::getenv(name) == nullptr);
  }
  CHECK(fabric->facts().library_path.find("libucp") != std::string::npos);
  CHECK(fabric->facts().library_version.starts_with("1."));
  const auto cpu_start = std::clock();
  std::this_thread::sleep_for(Milliseconds(300));
  CHECK(std::clock() - cpu_start < CLOCKS_PER_SEC / 50);
}

TEST_CASE("a second UCX, or none, is refused with its path") {
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  auto options = options_for(false);
  options.ucx_library = "/nowhere/libucp.so.0";
  CHECK_THROWS_WITH_AS(static_cast<void>(open_fabric(options, listener)), doctest::Contains("/nowhere/libucp.so.0"),
                       Error);
}

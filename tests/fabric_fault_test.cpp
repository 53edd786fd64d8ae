// Peers that die, stop, or never were: what is under way ends, once, within a bound, and with words.
#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "tests/fabric_process.h"

using namespace weightcast;

namespace {

// Puts the whole source to `target` again and again until a put fails or the tally says so.
void push_until_failure(Pair& pair, RegionId source, std::uint32_t target, Tally& tally) {
  while (!tally.failed()) {
    const Put put{pair.peer, source, 0, target, 0, kRegionBytes, &tally};
    if (!pair.fabric->put(put, soon()).ok()) return;
    if (!pair.fabric->signal(pair.peer, Bytes(1), &tally, soon()).ok()) return;
  }
}

// A connection over tcp whose other end has stopped with puts under way.
struct StoppedPair : Pair {
  explicit StoppedPair(const FabricOptions& options) : Pair(true, options), source(fabric->allocate(kRegionBytes)) {
    process.stop();
    for (std::uint32_t i = 0; i < options.window + options.queue_length; ++i) {
      throw_if_failed(fabric->put({peer, source, 0, 0, 0, kRegionBytes, &tally}, soon()));
    }
  }
  ~StoppedPair() { fabric.reset(); }  // before the tally, which outlives what is under way
  StoppedPair(const StoppedPair&) = delete;
  StoppedPair& operator=(const StoppedPair&) = delete;

  RegionId source;
  Tally tally;
};

FabricOptions narrow() {
  auto options = options_for(true);
  options.window = 2;
  options.queue_length = 3;
  return options;
}

}  // namespace

TEST_CASE("a peer killed while it is written to is reported once, and everything ends as unreachable by its name") {
  for (const std::string path : {"tcp", "cma", "posix"}) {
    CAPTURE(path);
    Pair pair(path == "tcp");
    const RegionId source = pair.fabric->allocate(kRegionBytes);
    Tally tally;
    std::thread sender([&] { push_until_failure(pair, source, path == "posix" ? 0 : 1, tally); });
    std::this_thread::sleep_for(Milliseconds(50));
    pair.process.kill_now();
    const auto killed = Clock::now();
    sender.join();
    const auto status = tally.wait(soon(), "what was under way");
    CHECK(status.code() == Code::unreachable);
    CHECK_MESSAGE(status.message().find("server 2") != std::string::npos, status.message());
    CHECK(seconds_since(killed) < 4);
    for (const auto deadline = soon(); pair.listener.failures == 0 && !deadline.passed();) std::this_thread::yield();
    CHECK(pair.listener.failures == 1);
    tally.reset();
    const auto start = Clock::now();
    REQUIRE(pair.fabric->put({pair.peer, source, 0, 1, 0, 8, &tally}, soon()).ok());
    REQUIRE(pair.fabric->signal(pair.peer, Bytes(1), &tally, soon()).ok());
    REQUIRE(pair.fabric->send(pair.peer, Bytes(1), &tally, soon()).ok());
    CHECK(tally.wait(soon(), "later operations").code() == Code::unreachable);
    CHECK(seconds_since(start) < 0.5);
    CHECK(pair.listener.failures == 1);
    pair.fabric->disconnect(pair.peer);
  }
}

TEST_CASE("an idle peer that dies is reported without anybody writing to it") {
  for (const bool network_only : {true, false}) {
    CAPTURE(network_only);
    Pair pair(network_only);
    pair.process.kill_now();
    for (const auto deadline = soon(); pair.listener.failures == 0 && !deadline.passed();) {
      std::this_thread::sleep_for(Milliseconds(5));
    }
    CHECK(pair.listener.failures == 1);
  }
}

TEST_CASE("a stopped peer holds submitters back, for as long as they said; continued, it gets everything") {
  StoppedPair pair(narrow());
  const auto start = Clock::now();
  const Put one_more{pair.peer, pair.source, 0, 0, 0, kRegionBytes, &pair.tally};
  const auto full = pair.fabric->put(one_more, Deadline::after(Milliseconds(100)));
  CHECK(full.code() == Code::timed_out);
  CHECK_MESSAGE(full.message().find("server 2") != std::string::npos, full.message());
  const auto waited = pair.tally.wait(Deadline::after(Milliseconds(100)), "puts to server 2");
  CHECK(waited.code() == Code::timed_out);
  CHECK(waited.message().find("puts to server 2") != std::string::npos);
  CHECK(seconds_since(start) < 2);
  CHECK(pair.listener.failures == 0);
  pair.process.resume();
  CHECK(pair.tally.wait(soon(), "puts to server 2").ok());
}

TEST_CASE("a stopped peer does not hold up puts to another") {
  StoppedPair pair(narrow());
  PeerProcess second(true);
  const PeerId peer = pair.fabric->connect("server 3", second.card, soon());
  Tally tally;
  for (int i = 0; i < 20; ++i) REQUIRE(pair.fabric->put({peer, pair.source, 0, 1, 0, 4096, &tally}, soon()).ok());
  REQUIRE(pair.fabric->signal(peer, Bytes(1), &tally, soon()).ok());
  CHECK(tally.wait(soon(), "puts to server 3").ok());
}

TEST_CASE("disconnecting ends what is under way as aborted, and the number of the peer means nothing afterwards") {
  StoppedPair pair(narrow());
  const auto start = Clock::now();
  pair.fabric->disconnect(pair.peer);
  pair.fabric->disconnect(pair.peer);
  CHECK(pair.tally.wait(soon(), "what was under way").code() == Code::aborted);
  CHECK(seconds_since(start) < 4);
  const auto later = pair.fabric->put({pair.peer, pair.source, 0, 0, 0, 8, &pair.tally}, soon());
  CHECK(later.code() == Code::invalid_argument);
  CHECK(pair.listener.failures == 0);
}

TEST_CASE("closing the fabric ends what is under way as aborted") {
  StoppedPair pair(narrow());
  const auto start = Clock::now();
  pair.fabric.reset();
  CHECK(pair.tally.outstanding() == 0);
  CHECK(pair.tally.first_failure().code() == Code::aborted);
  CHECK(seconds_since(start) < 5);
}

TEST_CASE("first contact with a process that died or stopped fails within its deadline and names it") {
  for (const bool network_only : {true, false}) {
    // Through shared memory a stopped process is reached all the same: nobody needs to run at the other end.
    for (const bool stopped : {network_only, false}) {
      CAPTURE(network_only);
      CAPTURE(stopped);
      PeerProcess process(network_only);
      Listener listener;
      const auto fabric = open_fabric(options_for(network_only), listener);
      if (stopped) process.stop();
      if (!stopped) process.kill_now();
      const auto start = Clock::now();
      try {
        static_cast<void>(fabric->connect("server 2", process.card, Deadline::after(Milliseconds(500))));
        FAIL("connected");
      } catch (const Error& error) {
        CHECK((error.code() == Code::unreachable || error.code() == Code::timed_out));
        CHECK_MESSAGE(std::string(error.what()).find("server 2") != std::string::npos, error.what());
      }
      CHECK(seconds_since(start) < 2);
      if (stopped) process.resume();
    }
  }
}

TEST_CASE("a card that was damaged on its way is refused or leads nowhere, and harms nobody") {
  PeerProcess process(false);
  Listener listener;
  const auto fabric = open_fabric(options_for(false), listener);
  for (const std::uint64_t at : {0, 4, 8, 16, 20}) {
    Bytes card = process.card;
    card[at] ^= std::byte{0xff};
    CHECK_THROWS_AS(static_cast<void>(fabric->connect("server 2", card, soon())), Error);
  }
  CHECK_THROWS_AS(static_cast<void>(fabric->connect("server 2", Bytes(), soon())), Error);
  CHECK(fabric->connect("server 2", process.card, soon()) != 0);
}

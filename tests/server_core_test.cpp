#include "plugin/server_core.h"

#include <doctest/doctest.h>

#include "tests/support/actions.h"
#include "tests/support/small_cluster.h"

using namespace weightcast;

namespace {

constexpr std::uint64_t kFirstTrainer = 100;  // incarnations
constexpr std::uint64_t kSecondTrainer = 101;

struct Server {
  explicit Server(const std::string& landing = "staged", std::uint32_t trainers = 2)
      : config(with(landing, trainers)),
        core(config, small_join(config, Role::server, 0, 200), small_catalog(config, Role::server, 0), now) {
    actions = core.start(now);
  }
  static Config with(const std::string& landing, std::uint32_t trainers) {
    Config config = small_config(trainers, 1, 1);
    config.landing = landing;
    return config;
  }
  std::vector<ServerAction>& event(const ServerEvent& what) { return actions = core.on(what, now); }
  std::vector<ServerAction>& hears(Message message) { return event(ServerEvent(std::move(message))); }
  std::vector<ServerAction>& ticks_after(std::uint32_t wait_ms) {
    now += Milliseconds(wait_ms);
    return event(ServerTick{});
  }
  [[nodiscard]] TableOffer offer(std::uint64_t generation, std::vector<std::uint64_t> quiet) const {
    TableOffer table;
    table.generation = generation;
    table.table = small_server_table(config, 0);
    table.peers = {{Role::trainer, 0, kFirstTrainer, {}, {}}, {Role::trainer, 1, kSecondTrainer, {}, {}}};
    table.quiet = std::move(quiet);
    return table;
  }
  void connects() {
    hears(Welcome{7});
    event(CardMade{{}, {1}, {{0, 0}}});
    hears(offer(1, {kFirstTrainer, kSecondTrainer}));
    REQUIRE(view().phase == ServerPhase::idle);
  }
  std::vector<ServerAction>& hears_signal(std::uint32_t trainer, std::uint64_t token, std::uint64_t bytes = kPartBytes,
                                          Status verified = {}) {
    return event(
        SignalArrived{{token, view().next_version, Role::trainer, trainer, 0, 0, bytes, 5}, std::move(verified), 0.1});
  }
  void becomes_ready(std::uint64_t version, std::uint64_t token) {
    hears(Begin{version, token});
    if (view().phase == ServerPhase::allow_due) event(AllowCalled{version});
    hears_signal(0, token);
    hears_signal(1, token);
    REQUIRE(view().phase == ServerPhase::ready);
  }
  [[nodiscard]] const ServerView& view() const { return core.view(); }

  Config config;
  Clock::time_point now{Milliseconds(1000)};
  ServerCore core;
  std::vector<ServerAction> actions;  // of the last event
};

}  // namespace

TEST_CASE("a server joins, connects, receives, verifies, is told to commit, and commits") {
  Server server;
  CHECK(sent<Join>(server.actions).size() == 1);
  CHECK(all_of<OpenFabric>(server.hears(Welcome{7})).size() == 1);
  CHECK(sent<CardOffer>(server.event(CardMade{{}, {1}, {{0, 0}}})).size() == 1);
  CHECK(sent<Connected>(server.hears(server.offer(4, {kFirstTrainer, kSecondTrainer})))[0].generation == 4);
  const auto armed = sent<Armed>(server.hears(Begin{1, 77}));
  REQUIRE(armed.size() == 1);
  CHECK(armed[0].token == 77);
  CHECK(sent<Ready>(server.hears_signal(0, 77)).empty());
  const auto ready = sent<Ready>(server.hears_signal(1, 77));
  REQUIRE(ready.size() == 1);
  CHECK(ready[0].token == 77);
  CHECK(ready[0].bytes == 2 * kPartBytes);
  server.hears(Commit{1});
  CHECK(server.view().phase == ServerPhase::commit_due);
  CHECK(sent<Committed>(server.event(CommitDone{1, 2.5}))[0].stall_ms == 2.5);
  CHECK(server.view().committed_version == 1);
  CHECK(server.view().phase == ServerPhase::idle);
}

TEST_CASE("stale tokens, other servers' signals, unknown trainers and duplicates are ignored") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  CHECK(server.hears_signal(0, 76).empty());
  CHECK(server.hears_signal(9, 77).empty());
  CHECK(server.event(SignalArrived{{77, 2, Role::trainer, 0, 0, 0, kPartBytes, 5}, {}, 0}).empty());
  CHECK(server.event(SignalArrived{{77, 1, Role::trainer, 0, 1, 0, kPartBytes, 5}, {}, 0}).empty());
  CHECK(server.event(SignalArrived{{77, 1, Role::trainer, 0, 0, 1, kPartBytes, 5}, {}, 0}).empty());
  server.hears_signal(0, 77);
  CHECK(server.hears_signal(0, 77).empty());
  CHECK(server.hears_signal(1, 76, kPartBytes, {Code::corrupted, "of an attempt that has ended"}).empty());
  CHECK(server.view().phase == ServerPhase::receiving);
}

TEST_CASE("bytes that were not planned and digests that differ fail the attempt") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  const auto short_one = sent<Failed>(server.hears_signal(0, 77, kPartBytes - 1));
  REQUIRE(short_one.size() == 1);
  CHECK(says_in(short_one[0].text, "trainer 0 sent 7 bytes of version 1 with its signal 0, 8 were planned"));
  CHECK(server.view().phase == ServerPhase::idle);
  server.hears(Begin{1, 78});
  server.hears_signal(0, 78);
  const auto corrupted = sent<Failed>(server.hears_signal(1, 78, kPartBytes, {Code::corrupted, "digest of weight"}));
  REQUIRE(corrupted.size() == 1);
  CHECK(corrupted[0].token == 78);
  CHECK(server.view().ended == 1);
  CHECK(server.view().ended_status.message() == "digest of weight");
}

TEST_CASE("an abort gives the attempt up, but never what was told to be committed") {
  Server server;
  server.connects();
  server.becomes_ready(1, 77);
  server.hears(Abort{1, 77, Code::aborted, "trainer 1 is out"});
  CHECK(server.view().phase == ServerPhase::idle);
  CHECK(server.view().committed_version == 0);
  server.becomes_ready(2, 78);
  server.hears(Commit{2});
  server.hears(Abort{2, 78, Code::aborted, "too late"});
  CHECK(server.view().phase == ServerPhase::commit_due);
}

TEST_CASE("a commit of what is not ready is ignored") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  server.hears(Commit{1});
  CHECK(server.view().phase == ServerPhase::receiving);
}

TEST_CASE("the next update is refused while the host has not committed the last one") {
  Server server;
  server.connects();
  server.becomes_ready(1, 77);
  server.hears(Commit{1});
  const auto failed = sent<Failed>(server.hears(Begin{2, 78}));
  REQUIRE(failed.size() == 1);
  CHECK(says_in(failed[0].text, "its host has not committed version 1 yet"));
  CHECK(failed[0].token == 78);
}

TEST_CASE("a new controller finds what is ready or decided, and what was half received is given up") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  CHECK(sent<Join>(server.hears(Rejoin{}))[0].ready_version == 0);
  CHECK(server.view().ended == 1);
  server.hears(Welcome{8});
  server.hears(server.offer(1, {kFirstTrainer, kSecondTrainer}));  // it was counted out: another fabric
  server.event(CardMade{{}, {2}, {{0, 0}}});
  server.hears(server.offer(2, {kFirstTrainer, kSecondTrainer}));
  server.becomes_ready(2, 78);
  Join join = sent<Join>(server.hears(Rejoin{}))[0];
  CHECK(join.ready_version == 2);
  CHECK(join.decided_version == 0);
  server.hears(Welcome{9});
  server.hears(Commit{2});
  join = sent<Join>(server.hears(Rejoin{}))[0];
  CHECK(join.decided_version == 2);
}

TEST_CASE("after an attempt with a trainer that is not known to be quiet, another fabric is opened before the next") {
  for (const char* landing : {"staged", "in_place"}) {
    Server server(landing);
    server.connects();
    server.hears(Begin{1, 77});
    server.hears(Abort{1, 77, Code::unreachable, "trainer 1 is out"});
    CHECK(all_of<OpenFabric>(server.hears(server.offer(2, {kFirstTrainer}))).size() == 1);
    CHECK(sent<Connected>(server.actions).empty());
    CHECK(server.view().phase == ServerPhase::connecting);
    CHECK(server.hears(server.offer(3, {kFirstTrainer})).empty());  // of the card before
    CHECK(sent<CardOffer>(server.event(CardMade{{}, {2}, {{0, 0}}})).size() == 1);
    server.hears(server.offer(4, {kFirstTrainer}));
    CHECK(sent<Connected>(server.actions).size() == 1);
  }
}

TEST_CASE("a server that is counted out of an attempt opens another fabric, however quiet the trainers are") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  server.hears(Rejoin{});
  server.hears(Welcome{8});
  CHECK(all_of<OpenFabric>(server.hears(server.offer(2, {kFirstTrainer, kSecondTrainer}))).size() == 1);
}

TEST_CASE("what is verified stays where it is: whoever has signalled has nothing in flight") {
  Server server;
  server.connects();
  server.becomes_ready(1, 77);
  CHECK(all_of<OpenFabric>(server.hears(server.offer(2, {}))).empty());
  CHECK(server.view().phase == ServerPhase::ready);
}

TEST_CASE("a shadow that cannot be taken is fatal and said so") {
  Server server;
  server.hears(Welcome{7});
  CHECK(sent<Failed>(server.event(CardMade{{Code::unavailable, "no space in /dev/shm"}, {}, {}})).size() == 1);
  CHECK(server.view().phase == ServerPhase::failed);
  CHECK(server.hears(Welcome{7}).empty());
}

TEST_CASE("in place, the host allows, and an update that is not finished leaves the weights torn until repaired") {
  Server server("in_place");
  server.connects();
  CHECK(sent<Armed>(server.hears(Begin{1, 77})).empty());
  CHECK(server.view().phase == ServerPhase::allow_due);
  CHECK(server.event(AllowCalled{2}).empty());
  CHECK_FALSE(server.view().torn);
  CHECK(sent<Armed>(server.event(AllowCalled{1})).size() == 1);
  CHECK(server.view().torn);
  server.hears(Abort{1, 77, Code::unreachable, "trainer 1 is out"});
  CHECK(server.view().torn);
  CHECK(sent<Connected>(server.hears(server.offer(2, {kFirstTrainer, kSecondTrainer}))).size() == 1);
  CHECK(sent<Join>(server.hears(Rejoin{}))[0].torn);
  server.hears(Welcome{8});
  server.becomes_ready(2, 78);
  server.hears(Commit{2});
  server.event(CommitDone{2, 0});
  CHECK_FALSE(server.view().torn);
}

TEST_CASE("a silent controller ends what is being received, with a text that names it") {
  Server server;
  server.connects();
  server.hears(Begin{1, 77});
  server.ticks_after(server.config.times.death_busy_ms + 1);
  CHECK(server.view().phase == ServerPhase::idle);
  CHECK(says_in(server.view().ended_status.message(), "the controller at tcp://127.0.0.1:5710 has not answered"));
  CHECK(sent<Failed>(server.actions).size() == 1);  // should only the line have been slow
  CHECK(says_in(server.view().waiting_for, "the controller at tcp://127.0.0.1:5710, silent for more than"));
  server.ticks_after(1);
  CHECK(server.view().controller_silent);  // though idle ranks are patient for longer
}

TEST_CASE("a silent controller does not take back what is ready") {
  Server server;
  server.connects();
  server.becomes_ready(1, 77);
  CHECK_FALSE(server.view().controller_silent);
  server.ticks_after(server.config.times.death_idle_ms + 1);
  CHECK(server.view().phase == ServerPhase::ready);
  CHECK(server.view().controller_silent);
  CHECK(says_in(server.view().waiting_for, "the controller at tcp://127.0.0.1:5710, silent for more than 2000 ms"));
}

TEST_CASE("a run that is refused as a whole leaves a server what it serves, and the next run connects it") {
  Server server;
  server.connects();
  server.becomes_ready(1, 77);
  server.hears(Commit{1});
  server.event(CommitDone{1, 0});
  server.hears(Refused{Code::refused, "missing tensor w"});
  CHECK(server.view().fatal.ok());
  CHECK(server.view().refusal.message() == "missing tensor w");
  CHECK(server.view().committed_version == 1);
  server.ticks_after(server.config.times.heartbeat_idle_ms + 1);
  CHECK(sent<Join>(server.hears(Rejoin{}))[0].committed_version == 1);
  server.hears(Welcome{9});
  CHECK(sent<Connected>(server.hears(server.offer(2, {kFirstTrainer, kSecondTrainer}))).size() == 1);
  CHECK(server.view().refusal.ok());
}

TEST_CASE("a join that is refused ends the server") {
  Server server;
  server.hears(Refused{Code::refused, "rank 0 is held"});
  CHECK(server.view().fatal.message() == "rank 0 is held");
  CHECK(server.view().phase == ServerPhase::failed);
}

TEST_CASE("a server to which nobody sends is ready as soon as it is armed") {
  Server server;
  server.connects();
  TableOffer offer = server.offer(2, {kFirstTrainer, kSecondTrainer});
  offer.table = encode(ServerTable{0, {}});
  server.hears(offer);
  CHECK(sent<Ready>(server.hears(Begin{1, 77})).size() == 1);
}

TEST_CASE("a table that cannot be read is reported with the server's name") {
  Server server;
  server.hears(Welcome{7});
  server.event(CardMade{{}, {1}, {{0, 0}}});
  TableOffer offer = server.offer(1, {});
  offer.table = {0xFF};
  const auto failed = sent<Failed>(server.hears(offer));
  REQUIRE(failed.size() == 1);
  CHECK(says_in(failed[0].text, "server 0 (replica 0) cannot read its table"));
}

namespace {

// Trainers 0 and 1 send to this server, which passes both parts on to server 1.
struct Relaying : Server {
  Relaying() {
    ServerTable table = decode_server_table(small_server_table(config, 0), core.catalog());
    for (ExpectedSender& sender : table.senders) sender.forwards = {{0, 1, sender.rank, {{0, {1, 0, 0, {2}}}}}};
    TableOffer offered = offer(1, {kFirstTrainer, kSecondTrainer});
    offered.table = encode(table);
    offered.peers.push_back({Role::server, 1, 300, {1}, {{0, 0}}});
    hears(Welcome{7});
    event(CardMade{{}, {1}, {{0, 0}}});
    hears(std::move(offered));
  }
  void receives() {
    event(Linked{1, {}, 0.1, {"server 1 over tcp"}});
    hears(Begin{1, 77});
  }
};

}  // namespace

TEST_CASE("a server that passes on is connected once it has linked to whom it feeds") {
  Relaying server;
  CHECK(sent<Connected>(server.actions).empty());
  CHECK(all_of<AdoptTable>(server.actions).size() == 1);
  server.event(Linked{1, {}, 0.1, {"server 1 over tcp"}});
  REQUIRE(sent<Connected>(server.actions).size() == 1);
  CHECK(sent<Connected>(server.actions).front().paths == std::vector<std::string>{"server 1 over tcp"});
  server.event(Linked{1, {Code::refused, "no path"}, 0.1, {}});
  CHECK(sent<Failed>(server.actions).size() == 1);
}

TEST_CASE("what is to be passed on is passed on before a server is ready") {
  Relaying server;
  server.receives();
  CHECK(all_of<PassOn>(server.actions).size() == 1);
  server.hears_signal(0, 77);
  server.hears_signal(1, 77);
  CHECK(server.view().phase == ServerPhase::receiving);
  server.event(PassedOn{77, {}, false});
  CHECK(server.view().phase == ServerPhase::ready);
}

TEST_CASE("a failure to pass on fails the attempt") {
  Relaying server;
  server.receives();
  server.event(PassedOn{77, {Code::refused, "the lease has run out"}, false});
  REQUIRE(sent<Failed>(server.actions).size() == 1);
  CHECK(sent<Failed>(server.actions).front().text == "the lease has run out");
  CHECK(server.view().phase == ServerPhase::idle);
}

TEST_CASE("after an abort, and before a new join, quiet is said only once nothing is in flight") {
  Relaying server;
  server.receives();
  server.hears(Abort{1, 77, Code::aborted, "given up"});
  CHECK(all_of<StopPassing>(server.actions).size() == 1);
  CHECK(sent<Quiesced>(server.actions).empty());
  CHECK(sent<Join>(server.hears(Rejoin{})).empty());
  server.event(PassedOn{77, {Code::aborted, "given up"}, false});
  CHECK(sent<Quiesced>(server.actions).size() == 1);
  CHECK(sent<Join>(server.actions).size() == 1);
}

TEST_CASE(
    "peers that fail, servers that are dropped and the lease concern a server that passes on as they do trainers") {
  Relaying server;
  server.receives();
  CHECK(sent<PeerLost>(server.event(PeerFailed{Role::server, 1, "reset"})).size() == 1);
  CHECK(all_of<DropServers>(server.hears(Drop{{1}})).size() == 1);
  REQUIRE(all_of<SetLease>(server.hears(Echo{900})).size() == 1);
  CHECK(all_of<SetLease>(server.actions).front().until ==
        Clock::time_point(Milliseconds(900)) + Milliseconds(server.config.times.lease_ms));
}

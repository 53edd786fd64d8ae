#include "plugin/trainer_core.h"

#include <doctest/doctest.h>

#include "tests/support/actions.h"
#include "tests/support/small_cluster.h"

using namespace weightcast;

namespace {

struct Trainer {
  Trainer() : core(config, small_join(config, Role::trainer, 0, 100), now) { actions = core.start(now); }

  std::vector<TrainerAction>& event(const TrainerEvent& what) { return actions = core.on(what, now); }
  std::vector<TrainerAction>& hears(Message message) { return event(TrainerEvent(std::move(message))); }
  std::vector<TrainerAction>& ticks_after(std::uint32_t wait_ms) {
    now += Milliseconds(wait_ms);
    return event(TrainerTick{0});
  }
  void connects(std::uint64_t generation = 1) {
    if (generation == 1) {
      hears(Welcome{7});
      event(FabricOpened{{}, {1}});
    }
    hears(TableOffer{generation, {1}, {}, {}});
    event(Linked{generation, {}, 0.5, {"server 0 over posix"}});
  }
  void moves(std::uint64_t version, std::uint64_t token) {
    event(PushCalled{version, ++ticket});
    hears(Go{version, token});
    REQUIRE(all_of<Move>(actions).size() == 1);
  }
  [[nodiscard]] const TrainerView& view() const { return core.view(); }

  Config config = small_config(1, 1, 1);
  Clock::time_point now{Milliseconds(1000)};
  TrainerCore core;
  std::vector<TrainerAction> actions;  // of the last event
  std::uint64_t ticket = 0;
};

}  // namespace

TEST_CASE("a trainer joins, opens the fabric once welcome, offers its card, links and pushes") {
  Trainer trainer;
  CHECK(sent<Join>(trainer.actions).size() == 1);
  CHECK(all_of<OpenFabric>(trainer.hears(Welcome{7})).size() == 1);
  CHECK(sent<CardOffer>(trainer.event(FabricOpened{{}, {1}})).size() == 1);
  CHECK(all_of<Link>(trainer.hears(TableOffer{4, {1}, {}, {}})).size() == 1);
  CHECK(sent<Connected>(trainer.event(Linked{4, {}, 0.5, {}}))[0].generation == 4);
  CHECK(trainer.view().connected);
  CHECK(sent<Pushed>(trainer.event(PushCalled{1, 1})).size() == 1);
  CHECK(all_of<Move>(trainer.hears(Go{1, 77}))[0].token == 77);
  const auto answered = sent<Sent>(trainer.event(Moved{1, 77, {}, 64, 0.1, 0.1, false}));
  REQUIRE(answered.size() == 1);
  CHECK(answered[0].token == 77);
  CHECK(trainer.view().released == 1);
  CHECK(trainer.view().ended == 0);
  trainer.hears(Done{1, "{}"});
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().ended_status.ok());
  CHECK(trainer.view().report == "{}");
}

TEST_CASE("a push before the links are made is offered when they are") {
  Trainer trainer;
  CHECK(sent<Pushed>(trainer.event(PushCalled{1, 1})).empty());
  trainer.connects();
  CHECK(sent<Pushed>(trainer.actions).size() == 1);
}

TEST_CASE("a version whose source was released is never offered again: its bytes may be others") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.event(Moved{1, 77, {}, 64, 0.1, 0.1, false});
  trainer.hears(TableOffer{2, {1}, {}, {}});
  CHECK(sent<Pushed>(trainer.event(Linked{2, {}, 0, {}})).empty());
  CHECK(all_of<Move>(trainer.hears(Go{1, 78})).empty());
  CHECK(sent<Failed>(trainer.actions).size() == 1);
}

TEST_CASE("a push that waits for done ends when another controller takes over") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.event(Moved{1, 77, {}, 64, 0.1, 0.1, false});
  CHECK(sent<Join>(trainer.hears(Rejoin{})).size() == 1);
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().ended_status.code() == Code::aborted);
  CHECK(says_in(trainer.view().ended_status.message(), "before it said whether they were committed"));
}

TEST_CASE("an abort stops the puts, and quiet is said only once none is in flight") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.hears(Abort{1, 77, Code::corrupted, "NaN"});
  CHECK(all_of<StopMoving>(trainer.actions).size() == 1);
  CHECK(sent<Quiesced>(trainer.actions).empty());
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().released == 0);  // the source is still being read
  const auto quiet = sent<Quiesced>(trainer.event(Moved{1, 77, {Code::aborted, "stopped"}, 0, 0, 0, false}));
  REQUIRE(quiet.size() == 1);
  CHECK(quiet[0].token == 77);
  CHECK(trainer.view().released == 1);
  CHECK(trainer.view().ended_status.message() == "NaN");
}

TEST_CASE("a version that is to be sent again stays with its source, and is offered to the next plan") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.hears(Abort{1, 77, Code::aborted, "server 0 is out", true});
  CHECK(all_of<StopMoving>(trainer.actions).size() == 1);
  CHECK(sent<Quiesced>(trainer.event(Moved{1, 77, {Code::aborted, "stopped"}, 0, 0, 0, false})).size() == 1);
  CHECK(trainer.view().pushing == 1);
  CHECK(trainer.view().released == 0);
  CHECK(trainer.view().ended == 0);
  trainer.hears(TableOffer{2, {}, {}, {}});
  CHECK(sent<Pushed>(trainer.event(Linked{2, {}, 0, {}})).size() == 1);
}

TEST_CASE("what has been released is not offered again, though the version is to be sent again") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.event(Moved{1, 77, {}, 8, 0, 0, false});
  REQUIRE(trainer.view().released == 1);
  trainer.hears(Abort{1, 77, Code::aborted, "server 0 is out", true});
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().ended_status.message() == "server 0 is out");
}

TEST_CASE("an abort of an attempt that has ended stops nothing and is answered with its own token") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 78);
  trainer.hears(Abort{1, 77, Code::aborted, "late"});
  CHECK(all_of<StopMoving>(trainer.actions).empty());
  REQUIRE(sent<Quiesced>(trainer.actions).size() == 1);
  CHECK(sent<Quiesced>(trainer.actions)[0].token == 77);
}

TEST_CASE("a trainer that fails to send says why, then that it is quiet") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.event(Moved{1, 77, {Code::corrupted, "NaN in weight"}, 0, 0, 0, false});
  REQUIRE(sent<Failed>(trainer.actions).size() == 1);
  CHECK(sent<Failed>(trainer.actions)[0].text == "NaN in weight");
  CHECK(sent<Quiesced>(trainer.actions).size() == 1);
  CHECK(trainer.view().ended_status.code() == Code::corrupted);
}

TEST_CASE("counted out in mid-put, a trainer joins again only when nothing is in flight") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  CHECK(sent<Join>(trainer.hears(Rejoin{})).empty());
  CHECK(all_of<StopMoving>(trainer.actions).size() == 1);
  trainer.event(Moved{1, 77, {Code::aborted, "stopped"}, 0, 0, 0, false});
  CHECK(sent<Join>(trainer.actions).size() == 1);
  CHECK(trainer.view().ended == 1);
  CHECK(sent<Join>(trainer.hears(Rejoin{})).empty());  // the answer is on its way
  trainer.now += Milliseconds(trainer.config.times.heartbeat_idle_ms);
  CHECK(sent<Join>(trainer.hears(Rejoin{})).size() == 1);
}

TEST_CASE("the lease runs from the trainer's own heartbeat, and an echo from the future is ignored") {
  Trainer trainer;
  trainer.connects();
  trainer.ticks_after(2000);
  const auto beats = sent<Heartbeat>(trainer.actions);
  REQUIRE(beats.size() == 1);
  trainer.now += Milliseconds(300);
  const auto leases = all_of<SetLease>(trainer.hears(Echo{beats[0].sent_ms}));
  REQUIRE(leases.size() == 1);
  CHECK(leases[0].until == trainer.now - Milliseconds(300) + Milliseconds(trainer.config.times.lease_ms));
  CHECK(trainer.hears(Echo{beats[0].sent_ms + 1000000}).empty());
  CHECK(trainer.hears(Echo{UINT64_MAX}).empty());
}

TEST_CASE("a silent controller ends the push with a text that names it, and every later one as well") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.ticks_after(trainer.config.times.death_busy_ms + 1);
  CHECK(all_of<StopMoving>(trainer.actions).size() == 1);
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().ended_status.code() == Code::unreachable);
  CHECK(says_in(trainer.view().ended_status.message(), "the controller at tcp://127.0.0.1:5710 has not answered"));
  trainer.event(Moved{1, 77, {Code::unreachable, "stopped"}, 0, 0, 0, false});
  trainer.event(PushCalled{2, 9});
  trainer.ticks_after(100);
  CHECK(trainer.view().ended == 2);
  CHECK(trainer.view().released == 2);
}

TEST_CASE("a put refused for want of a lease, since the controller is silent, ends the push with its name as well") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  trainer.now += Milliseconds(trainer.config.times.lease_ms + 1);
  trainer.event(Moved{1, 77, {Code::refused, "put to server 0 not made: the lease has run out"}, 0, 0, 0, false});
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.view().ended_status.code() == Code::unreachable);
  CHECK(says_in(trainer.view().ended_status.message(),
                "the controller at tcp://127.0.0.1:5710 has not answered for 1500"));
}

TEST_CASE("a refused trainer ends its push and does nothing any more") {
  Trainer trainer;
  trainer.connects();
  trainer.event(PushCalled{1, 1});
  trainer.hears(Refused{Code::refused, "rank 0 is held"});
  CHECK(trainer.view().fatal.message() == "rank 0 is held");
  CHECK(trainer.view().ended == 1);
  CHECK(trainer.hears(Rejoin{}).empty());
  trainer.event(PushCalled{2, 2});
  CHECK(trainer.view().ended == 2);
  CHECK(trainer.view().ended_status.message() == "rank 0 is held");
}

TEST_CASE("a fabric that does not open is fatal, and the trainer leaves") {
  Trainer trainer;
  trainer.hears(Welcome{7});
  CHECK(sent<Leave>(trainer.event(FabricOpened{{Code::unavailable, "no UCX"}, {}})).size() == 1);
  CHECK(trainer.view().fatal.message() == "no UCX");
}

TEST_CASE("a table that comes while another is linked, or while bytes move, is linked afterwards") {
  Trainer trainer;
  trainer.hears(Welcome{7});
  trainer.event(FabricOpened{{}, {1}});
  trainer.hears(TableOffer{1, {1}, {}, {}});
  CHECK(all_of<Link>(trainer.hears(TableOffer{2, {1}, {}, {}})).empty());
  const auto next = all_of<Link>(trainer.event(Linked{1, {}, 0, {}}));
  REQUIRE(next.size() == 1);
  CHECK(next[0].offer.generation == 2);
  CHECK(sent<Connected>(trainer.actions).empty());
  trainer.event(Linked{2, {}, 0, {}});
  trainer.moves(1, 77);
  CHECK(all_of<Link>(trainer.hears(TableOffer{3, {1}, {}, {}})).empty());
  CHECK(all_of<Link>(trainer.event(Moved{1, 77, {}, 0, 0, 0, false})).size() == 1);
}

TEST_CASE("a link that fails, a lost peer and dropped servers are passed on") {
  Trainer trainer;
  trainer.hears(Welcome{7});
  trainer.event(FabricOpened{{}, {1}});
  trainer.hears(TableOffer{1, {1}, {}, {}});
  CHECK(sent<Failed>(trainer.event(Linked{1, {Code::unreachable, "server 0"}, 0, {}})).size() == 1);
  CHECK_FALSE(trainer.view().connected);
  CHECK(sent<PeerLost>(trainer.event(PeerFailed{Role::server, 3, "reset"}))[0].rank == 3);
  CHECK(all_of<DropServers>(trainer.hears(Drop{{3}})).size() == 1);
}

TEST_CASE("a cancelled push ends, and a late go for it is refused") {
  Trainer trainer;
  trainer.connects();
  trainer.event(PushCalled{1, 1});
  trainer.event(PushCancelled{1, {Code::timed_out, "nobody came"}});
  CHECK(trainer.view().ended_status.message() == "nobody came");
  CHECK(all_of<Move>(trainer.hears(Go{1, 77})).empty());
  CHECK(says_in(sent<Failed>(trainer.actions)[0].text, "does not offer version 1"));
}

TEST_CASE("connections that were cut to end the puts are made again through a new join") {
  Trainer trainer;
  trainer.connects();
  trainer.moves(1, 77);
  CHECK(sent<Join>(trainer.event(Moved{1, 77, {Code::timed_out, "stuck"}, 0, 0, 0, true})).size() == 1);
}

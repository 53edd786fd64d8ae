// Who is a member, who is refused, what a new controller finds. Updates: controller_update_test.cpp.
#include "plugin/controller_core.h"

#include <doctest/doctest.h>

#include "tests/support/controller_cluster.h"

using namespace weightcast;

TEST_CASE("a join of another run, rank, catalog or digest is refused with what to do") {
  Cluster cluster;
  const auto refusal = [&](Join join) {
    cluster.actions.clear();
    cluster.says(kTrainer0, std::move(join));
    const auto refused = cluster.got<Refused>(kTrainer0);
    return refused.empty() ? std::string() : refused[0].text;
  };
  const Join good = small_join(cluster.config, Role::trainer, 0, 5);
  Join join = good;
  join.run = "other";
  CHECK(says_in(refusal(join), "belongs to run 'other', this controller to run 'test'"));
  join = good;
  join.rank = 2;
  CHECK(says_in(refusal(join), "expects 2 trainers (ranks 0 to 1)"));
  join = good;
  join.rank = 1;
  CHECK(says_in(refusal(join), "sent the catalog of trainer 0"));
  join = good;
  join.catalog_digest ^= 1;
  CHECK(says_in(refusal(join), "different builds"));
  join = good;
  join.incarnation = 0;
  CHECK(says_in(refusal(join), "without an incarnation"));
  join = good;
  join.catalog = "{";
  CHECK(says_in(refusal(join), "catalog of trainer 0"));
  CHECK(refusal(good).empty());
}

TEST_CASE("who sends what its role may not is refused and out") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.says(kServer0, Pushed{1});
  REQUIRE(cluster.got<Refused>(kServer0).size() == 1);
  CHECK(says_in(cluster.got<Refused>(kServer0)[0].text, "a server may not send 'pushed'"));
  cluster.actions.clear();
  cluster.says(kServer0, Heartbeat{1, 0});
  CHECK(cluster.got<Rejoin>(kServer0).size() == 1);
}

TEST_CASE("a second process with a rank waits, and is refused once the first is heard of") {
  Cluster cluster;
  cluster.joins(kTrainer0);
  cluster.event(FrameArrived{"rival", small_join(cluster.config, Role::trainer, 0, 999)});
  CHECK(cluster.got<Welcome>(kTrainer0).size() == 1);
  const auto refused_now = [&] {
    const auto frames = all_of<SendFrame>(cluster.actions);
    return std::any_of(frames.begin(), frames.end(), [](const SendFrame& frame) {
      return frame.connection == "rival" && std::holds_alternative<Refused>(frame.message);
    });
  };
  cluster.says(kTrainer0, Heartbeat{1, 0});
  CHECK_FALSE(refused_now());  // it may have been under way when its sender died
  cluster.now += Milliseconds(cluster.config.times.heartbeat_idle_ms);
  cluster.says(kTrainer0, Heartbeat{1, 0});
  CHECK(refused_now());
}

TEST_CASE("a holder that joins again keeps its rank against the one that waits for it") {
  Cluster cluster;
  cluster.joins(kTrainer0);
  cluster.event(FrameArrived{"rival", small_join(cluster.config, Role::trainer, 0, 999)});
  cluster.joins(kTrainer0);
  cluster.actions.clear();
  cluster.event(FrameArrived{"rival", Leave{}});
  cluster.says(kTrainer0, Heartbeat{1, 0});
  CHECK(cluster.got<Echo>(kTrainer0).size() == 1);
}

TEST_CASE("a second process with a rank takes its place once the first is silent") {
  Cluster cluster;
  cluster.joins(kTrainer0);
  cluster.event(FrameArrived{"rival", small_join(cluster.config, Role::trainer, 0, 999)});
  cluster.later(cluster.config.times.death_idle_ms + 1);
  const auto frames = all_of<SendFrame>(cluster.actions);
  const bool welcome = std::any_of(frames.begin(), frames.end(), [](const SendFrame& frame) {
    return frame.connection == "rival" && std::holds_alternative<Welcome>(frame.message);
  });
  CHECK(welcome);
}

TEST_CASE("a new controller rolls forward what any rank was told to commit, and gives up what none was") {
  SUBCASE("a rank has committed, the other is ready") {
    Cluster cluster(1, 2);
    for (const RankKey& key : {kTrainer0, kTrainer1}) cluster.joins(key);
    cluster.joins(kServer0, 3);
    cluster.joins(kServer1, 2, 3);
    CHECK(cluster.got<Commit>(kServer1).size() == 1);
    CHECK(cluster.core.version() == 3);
  }
  SUBCASE("a rank was told but has not committed yet") {
    Cluster cluster(1, 2);
    for (const RankKey& key : {kTrainer0, kTrainer1}) cluster.joins(key);
    cluster.joins(kServer0, 2, 3, 3);
    cluster.joins(kServer1, 2, 3);
    CHECK(cluster.got<Commit>(kServer1).size() == 1);
    CHECK(cluster.got<Abort>(kServer0).empty());
  }
  SUBCASE("all are ready, none was told") {
    Cluster cluster(1, 2);
    for (const RankKey& key : {kTrainer0, kTrainer1}) cluster.joins(key);
    cluster.joins(kServer0, 2, 3);
    cluster.joins(kServer1, 2, 3);
    CHECK(says_in(cluster.abort_text(kServer0), "version 3 was not decided for replica 0; version 2 stands"));
    CHECK(cluster.got<Commit>(kServer1).empty());
  }
}

TEST_CASE("a rank follows its own replica to a version, though later ones were decided without it") {
  Config config = small_config(1, 2, 2);
  ControllerCore core(config, 7, Clock::time_point(Milliseconds(1000)));
  std::vector<ControllerAction> actions;
  const auto join = [&](Role role, std::uint32_t rank, std::uint64_t committed, std::uint64_t ready) {
    Join joining = small_join(config, role, rank, 300 + rank + (role == Role::server ? 50U : 0U));
    joining.committed_version = committed;
    joining.ready_version = ready;
    for (const Message& message : std::vector<Message>{joining, CardOffer{{1}, {{0, 0}}}}) {
      const FrameArrived frame{to_string(RankKey{role, rank}), message};
      for (auto& action : core.on(frame, Clock::time_point(Milliseconds(1000)))) actions.push_back(std::move(action));
    }
  };
  join(Role::trainer, 0, 0, 0);
  join(Role::server, 0, 8, 0);
  join(Role::server, 1, 8, 0);
  join(Role::server, 2, 5, 6);
  join(Role::server, 3, 6, 0);
  const auto frames = all_of<SendFrame>(actions);
  CHECK(std::any_of(frames.begin(), frames.end(), [](const SendFrame& frame) {
    return frame.connection == "server 2" && std::holds_alternative<Commit>(frame.message);
  }));
}

TEST_CASE("a rank alone does not follow a version that only another replica decided") {
  Cluster cluster(2, 1);
  cluster.config.controller.replicas = 2;
  Config wide = small_config(2, 2, 2);
  ControllerCore core(wide, 7, cluster.now);
  std::vector<ControllerAction> actions;
  const auto join = [&](Role role, std::uint32_t rank, std::uint64_t committed, std::uint64_t ready) {
    Join joining = small_join(wide, role, rank, 300 + rank + (role == Role::server ? 50U : 0U));
    joining.committed_version = committed;
    joining.ready_version = ready;
    for (const Message& message : std::vector<Message>{joining, CardOffer{{1}, {{0, 0}}}}) {
      for (auto& action : core.on(FrameArrived{to_string(RankKey{role, rank}), message}, cluster.now)) {
        actions.push_back(std::move(action));
      }
    }
  };
  join(Role::trainer, 0, 0, 0);
  join(Role::trainer, 1, 0, 0);
  join(Role::server, 0, 3, 0);
  join(Role::server, 1, 3, 0);
  join(Role::server, 2, 2, 3);
  join(Role::server, 3, 0, 0);  // a new process: it has nothing of version 3
  for (const SendFrame& frame : all_of<SendFrame>(actions)) {
    CHECK_FALSE(std::holds_alternative<Commit>(frame.message));
    if (frame.connection == "server 2" && std::holds_alternative<Abort>(frame.message)) return;
  }
  FAIL("server 2 was not told to give version 3 up");
}

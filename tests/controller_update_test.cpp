// One update, stage by stage, and who may die in it.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "tests/support/controller_cluster.h"

using namespace weightcast;

TEST_CASE("an update goes from push to done, replica by replica, and the next may follow") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.both_push(1);
  CHECK(cluster.core.state() == ClusterState::arming);
  CHECK(cluster.got<Go>(kTrainer0).empty());
  cluster.arms(1);
  REQUIRE(cluster.got<Go>(kTrainer1).size() == 1);
  CHECK(cluster.got<Go>(kTrainer1)[0].token == cluster.token);
  cluster.says(kServer0, Ready{1, cluster.token, 16, 0.1});
  CHECK(cluster.got<Commit>(kServer0).size() == 1);  // its replica is whole and ready
  CHECK(cluster.got<Commit>(kServer1).empty());
  cluster.all_sent(1);
  cluster.says(kServer1, Ready{1, cluster.token, 16, 0.1});
  CHECK(cluster.core.state() == ClusterState::committing);
  cluster.says(kServer0, Committed{1, 2.5});
  cluster.says(kServer1, Committed{1, 1.5});
  CHECK(cluster.core.state() == ClusterState::idle);
  CHECK(cluster.core.version() == 1);
  REQUIRE(cluster.got<Done>(kTrainer0).size() == 1);
  const auto report = nlohmann::json::parse(cluster.got<Done>(kTrainer0)[0].report);
  CHECK(report["stall_ms"] == 2.5);
  CHECK(report["replicas_committed"] == std::vector<int>{0, 1});
  cluster.moves(2);
}

TEST_CASE("no rank of a replica is told to commit before all of them are ready") {
  Cluster cluster(1, 2);
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.all_sent(1);
  cluster.says(kServer0, Ready{1, cluster.token, 16, 0});
  CHECK(cluster.got<Commit>(kServer0).empty());
  cluster.says(kServer1, Ready{1, cluster.token, 16, 0});
  CHECK(cluster.got<Commit>(kServer0).size() == 1);
  CHECK(cluster.got<Commit>(kServer1).size() == 1);
}

TEST_CASE("a trainer that dies in mid-put aborts the update and is missing among the quiet ones") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.later_without(cluster.config.times.death_busy_ms + 200, {kTrainer1});
  CHECK(cluster.core.state() == ClusterState::aborting);  // trainer 0 has not ended its puts
  CHECK(says_in(cluster.abort_text(kServer0), "trainer 1 is out: no heartbeat for 2000 ms"));
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  CHECK(cluster.core.state() == ClusterState::planning);
  cluster.actions.clear();
  cluster.event(FrameArrived{"again", small_join(cluster.config, Role::trainer, 1, 555)});
  cluster.event(FrameArrived{"again", CardOffer{{1}, {}}});
  PlanMade plan{cluster.generation, {}, {}, {}, {}};
  for (const RankKey& key : cluster.all) plan.tables[key] = {1};
  cluster.event(plan);
  REQUIRE(cluster.got<TableOffer>(kServer0).size() == 1);
  CHECK(cluster.got<TableOffer>(kServer0)[0].quiet == std::vector<std::uint64_t>{100, 200, 201, 555});
}

TEST_CASE("a trainer that dies while idle, arming or after all its bytes have left is no suspect") {
  for (const int stage : {0, 1, 2}) {
    CAPTURE(stage);
    Cluster cluster;
    cluster.becomes_idle();
    if (stage == 1) cluster.both_push(1);
    if (stage == 2) {
      cluster.moves(1);
      cluster.says(kTrainer1, Sent{1, cluster.token, 8, 0, 0});
    }
    cluster.later_without(cluster.config.times.death_idle_ms + 200, {kTrainer1});
    if (stage == 1) cluster.says(kTrainer0, Quiesced{1, cluster.token});
    if (stage == 2) {
      CHECK(cluster.core.state() == ClusterState::moving);  // its part is done
      continue;
    }
    cluster.event(FrameArrived{"again", small_join(cluster.config, Role::trainer, 1, 555)});
    cluster.event(FrameArrived{"again", CardOffer{{1}, {}}});
    cluster.actions.clear();
    PlanMade plan{cluster.generation, {}, {}, {}, {}};
    for (const RankKey& key : cluster.all) plan.tables[key] = {1};
    cluster.event(plan);
    REQUIRE(cluster.got<TableOffer>(kServer0).size() == 1);
    CHECK(cluster.got<TableOffer>(kServer0)[0].quiet == std::vector<std::uint64_t>{100, 101, 200, 201, 555});
  }
}

TEST_CASE("the status counts the bytes of the update under way against those of the replicas that still take part") {
  Cluster cluster(2, 1);
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.says(kTrainer0, Heartbeat{1, 7});
  const auto update = [&] { return nlohmann::json::parse(cluster.core.status_json("")).at("update"); };
  CHECK(update().at("bytes_done") == 7);
  CHECK(update().at("bytes_total") == 120);
  cluster.later_without(cluster.config.times.death_busy_ms + 200, {kServer1});
  CHECK(update().at("bytes_total") == 100);
}

TEST_CASE("a server that dies in mid-update takes only its replica out") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.later_without(cluster.config.times.death_busy_ms + 200, {kServer1});
  CHECK(cluster.core.state() == ClusterState::moving);
  REQUIRE(cluster.got<Drop>(kTrainer0).size() == 1);
  CHECK(cluster.got<Drop>(kTrainer0)[0].servers == std::vector<std::uint32_t>{1});
  cluster.all_sent(1);
  cluster.says(kServer0, Ready{1, cluster.token, 16, 0});
  cluster.says(kServer0, Committed{1, 0});
  CHECK(cluster.got<Done>(kTrainer0).size() == 1);
}

TEST_CASE("when the last replica loses a server the update is given up") {
  Cluster cluster(1, 2);
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.later_without(cluster.config.times.death_busy_ms + 200, {kServer1});
  CHECK(says_in(cluster.abort_text(kTrainer0), "no whole replica is left for version 1"));
  CHECK(cluster.got<Abort>(kServer0).size() == 1);
}

TEST_CASE("a failed digest or a NaN aborts with its text, and rest waits for every trainer") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.says(kTrainer1, Failed{1, cluster.token, Code::corrupted, "NaN in weight"});
  CHECK(cluster.abort_text(kServer0) == "NaN in weight");
  CHECK(cluster.abort_text(kTrainer0) == "NaN in weight");
  cluster.says(kTrainer1, Quiesced{1, cluster.token});
  CHECK(cluster.core.state() == ClusterState::aborting);
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  CHECK(cluster.core.state() == ClusterState::idle);
}

TEST_CASE("answers to an attempt that has ended do not count for the next one of the same version") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  const std::uint64_t old = cluster.token;
  cluster.says(kTrainer0, Failed{1, old, Code::corrupted, "NaN"});
  cluster.says(kTrainer0, Quiesced{1, old});
  cluster.says(kTrainer1, Quiesced{1, old});
  cluster.both_push(1);
  REQUIRE(cluster.token != old);
  cluster.says(kServer0, Armed{1, old});
  cluster.says(kServer1, Armed{1, old});
  CHECK(cluster.core.state() == ClusterState::arming);
  cluster.arms(1);
  cluster.says(kServer0, Ready{1, old, 16, 0});
  CHECK(cluster.got<Commit>(kServer0).empty());
  cluster.says(kServer0, Failed{1, old, Code::corrupted, "late"});
  CHECK(cluster.core.state() == ClusterState::moving);
  cluster.says(kServer0, Failed{1, cluster.token, Code::corrupted, "now"});
  cluster.says(kTrainer0, Quiesced{1, old});
  cluster.says(kTrainer1, Quiesced{1, old});
  CHECK(cluster.core.state() == ClusterState::aborting);
}

TEST_CASE("versions only grow, and all trainers push the same one") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.says(kTrainer0, Pushed{5});
  cluster.says(kTrainer1, Pushed{6});
  CHECK(says_in(cluster.abort_text(kTrainer0), "trainer 0 pushes 5; trainer 1 pushes 6;"));
  CHECK(cluster.core.state() == ClusterState::idle);
  cluster.moves(7);
  cluster.all_sent(7);
  for (const RankKey& key : {kServer0, kServer1}) cluster.says(key, Ready{7, cluster.token, 16, 0});
  for (const RankKey& key : {kServer0, kServer1}) cluster.says(key, Committed{7, 0});
  cluster.says(kTrainer0, Pushed{7});
  CHECK(says_in(cluster.abort_text(kTrainer0), "version 7 is not above version 7, which is committed"));
}

TEST_CASE("a push that others do not join ends at its bound and names them") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.says(kTrainer0, Pushed{1});
  cluster.later_without(cluster.config.times.update_ms + 200, {});
  CHECK(says_in(cluster.abort_text(kTrainer0), "version 1 did not begin within 60000 ms: waiting for trainer 1"));
}

TEST_CASE("stages that do not end name whom they waited for") {
  Cluster arming;
  arming.becomes_idle();
  arming.both_push(1);
  arming.says(kServer0, Armed{1, arming.token});
  arming.later_without(arming.config.times.update_ms + 200, {});
  CHECK(says_in(arming.abort_text(kTrainer0), "not prepared to receive within 60000 ms: server 1"));
  Cluster moving;
  moving.becomes_idle();
  moving.moves(1);
  moving.says(kTrainer0, Sent{1, moving.token, 8, 0, 0});
  moving.later_without(moving.config.times.update_ms + 200, {});
  CHECK(says_in(moving.abort_text(kServer0), "sending: trainer 1; not yet verified: server 0, server 1"));
}

TEST_CASE("a host that never commits does not hold the others up for ever, and is named") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.all_sent(1);
  for (const RankKey& key : {kServer0, kServer1}) cluster.says(key, Ready{1, cluster.token, 16, 0});
  cluster.says(kServer0, Committed{1, 0});
  cluster.actions.clear();
  cluster.later_without(cluster.config.times.commit_ms + 200, {});
  CHECK(cluster.core.state() == ClusterState::idle);
  const auto notes = all_of<Note>(cluster.actions);
  REQUIRE_FALSE(notes.empty());
  CHECK(says_in(notes[0].text, "decided but not committed within 60000 ms by server 1"));
  REQUIRE(cluster.got<Done>(kTrainer0).size() == 1);
  CHECK(nlohmann::json::parse(cluster.got<Done>(kTrainer0)[0].report)["replicas_late"] == std::vector<int>{1});
}

TEST_CASE("a trainer that does not end its puts after an abort is counted out") {
  Cluster cluster;
  cluster.becomes_idle();
  cluster.moves(1);
  cluster.says(kTrainer0, Failed{1, cluster.token, Code::corrupted, "NaN"});
  cluster.says(kTrainer0, Quiesced{1, cluster.token});
  cluster.later_without(2 * cluster.config.times.death_busy_ms + 200, {});
  CHECK(cluster.core.state() != ClusterState::aborting);
  CHECK(cluster.got<Rejoin>(kTrainer1).size() >= 1);  // it is no member any more
}

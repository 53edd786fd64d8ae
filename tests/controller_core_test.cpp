#include "plugin/controller_core.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "tests/support/actions.h"
#include "tests/support/small_cluster.h"

using namespace weightcast;

namespace {

constexpr RankKey kTrainer0{Role::trainer, 0};
constexpr RankKey kTrainer1{Role::trainer, 1};
constexpr RankKey kServer0{Role::server, 0};
constexpr RankKey kServer1{Role::server, 1};

std::uint64_t usual_incarnation(const RankKey& key) { return (key.role == Role::server ? 200U : 100U) + key.rank; }

// A controller of two trainers and two replicas of one server each (or one replica of two), and its clock.
struct Cluster {
  explicit Cluster(std::uint32_t replicas = 2, std::uint32_t ranks = 1)
      : config(small_config(2, replicas, ranks)), core(config, 7, now) {}

  void event(const ControllerEvent& what) {
    for (ControllerAction& action : core.on(what, now)) {
      if (auto* plan = std::get_if<MakePlan>(&action)) generation = plan->generation;
      actions.push_back(std::move(action));
    }
  }
  void says(const RankKey& key, Message message) { event(FrameArrived{to_string(key), std::move(message)}); }
  void later(std::uint32_t wait_ms) {
    now += Milliseconds(wait_ms);
    event(Tick{});
  }
  // Time passes, and everyone but `dead` goes on sending heartbeats.
  void later_without(std::uint32_t wait_ms, const std::vector<RankKey>& dead) {
    for (std::uint32_t spent = 0; spent < wait_ms; spent += 100) {
      now += Milliseconds(100);
      for (const RankKey& key : all) {
        if (std::find(dead.begin(), dead.end(), key) == dead.end()) says(key, Heartbeat{1, 0});
      }
      event(Tick{});
    }
  }
  void joins(const RankKey& key, std::uint64_t committed = 0, std::uint64_t ready = 0, std::uint64_t decided = 0) {
    Join join = small_join(config, key.role, key.rank, usual_incarnation(key));
    join.committed_version = committed;
    join.ready_version = ready;
    join.decided_version = decided;
    says(key, join);
    says(key, CardOffer{{1}, {{0, 0}}});
  }
  void plan_and_connect() {
    PlanMade plan{generation, {}, {}};
    for (const RankKey& key : all) plan.tables[key] = {1};
    event(plan);
    for (const RankKey& key : all) says(key, Connected{generation, 0.1, {}});
  }
  void becomes_idle() {
    for (const RankKey& key : all) joins(key);
    plan_and_connect();
    REQUIRE(core.state() == ClusterState::idle);
  }
  void both_push(std::uint64_t version) {
    says(kTrainer0, Pushed{version});
    says(kTrainer1, Pushed{version});
    for (const Begin& begin : got<Begin>(kServer0)) token = begin.token;
  }
  void arms(std::uint64_t version) {
    says(kServer0, Armed{version, token});
    says(kServer1, Armed{version, token});
  }
  void moves(std::uint64_t version) {
    both_push(version);
    arms(version);
    REQUIRE(core.state() == ClusterState::moving);
  }
  void all_sent(std::uint64_t version) {
    says(kTrainer0, Sent{version, token, 8, 0.1, 0.1});
    says(kTrainer1, Sent{version, token, 8, 0.1, 0.1});
  }
  template <class Wanted>
  std::vector<Wanted> got(const RankKey& key) const {
    std::vector<Wanted> found;
    for (const SendFrame& frame : all_of<SendFrame>(actions)) {
      const auto* wanted = std::get_if<Wanted>(&frame.message);
      if (wanted != nullptr && frame.connection == to_string(key)) found.push_back(*wanted);
    }
    return found;
  }
  [[nodiscard]] std::string abort_text(const RankKey& key) const {
    const auto aborts = got<Abort>(key);
    return aborts.empty() ? "" : aborts.back().text;
  }

  const std::vector<RankKey> all{kTrainer0, kTrainer1, kServer0, kServer1};
  Config config;
  Clock::time_point now{Milliseconds(1000)};
  ControllerCore core;
  std::vector<ControllerAction> actions;  // since the last clear()
  std::uint64_t generation = 0;
  std::uint64_t token = 0;
};

bool says_in(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

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
  PlanMade plan{cluster.generation, {}, {}};
  for (const RankKey& key : cluster.all) plan.tables[key] = {1};
  cluster.event(plan);
  REQUIRE(cluster.got<TableOffer>(kServer0).size() == 1);
  CHECK(cluster.got<TableOffer>(kServer0)[0].quiet == std::vector<std::uint64_t>{100, 555});
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
    PlanMade plan{cluster.generation, {}, {}};
    for (const RankKey& key : cluster.all) plan.tables[key] = {1};
    cluster.event(plan);
    REQUIRE(cluster.got<TableOffer>(kServer0).size() == 1);
    CHECK(cluster.got<TableOffer>(kServer0)[0].quiet == std::vector<std::uint64_t>{100, 101, 555});
  }
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

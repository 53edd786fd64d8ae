// Ranks that leave and join: the new plan is proved, and what the change does not concern is as it was.
#include "schedule/replan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "schedule/planner.h"
#include "schedule/proof.h"
#include "schedule/what_if.h"
#include "tests/made_catalog.h"
#include "tests/scenario_files.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

struct Cluster {
  Catalogs catalogs;
  Topology topology;
  Plan plan;
};

Cluster cluster_of(const nlohmann::ordered_json& scene, bool relay) {
  const auto scenario = parsed(scene);
  Cluster cluster{catalogs_of(scenario), topology_of(scenario), {}};
  cluster.plan = make_plan(cluster.catalogs, cluster.topology, PlanOptions{.chunk_bytes = 1 << 20, .relay = relay});
  return cluster;
}

// Two replicas of the trainers, whose rows straddle blocks, and two replicas of eight servers on a node each.
nlohmann::ordered_json twice() {
  auto scene = small_mixture();
  scene["trainers"] = {{"layout", {{"dp", 2}, {"fsdp", 3}}},
                       {"hardware", {{"nodes", 2}, {"gpus_per_node", 3}, {"nic_gbs", 50}}}};
  scene["servers"][0]["layout"] = {{"replicas", 2}, {"dp", 4}, {"tp", 2}, {"ep", 8}};
  scene["servers"][0]["hardware"] = {{"nodes", 2}, {"gpus_per_node", 8}, {"nic_gbs", 50}, {"nvlink_gbs", 400}};
  return scene;
}

// Steps of both plans that are the same, in the same order.
std::size_t kept(const Plan& before, const Plan& after) {
  std::size_t count = 0;
  auto from = after.steps.begin();
  for (const auto& step : before.steps) {
    const auto found = std::find(from, after.steps.end(), step);
    if (found == after.steps.end()) continue;
    from = found + 1;
    ++count;
  }
  return count;
}

template <class Step>
bool concerns(const Step& step, std::uint32_t server) {
  return std::any_of(step.destinations.begin(), step.destinations.end(),
                     [&](const Destination& to) { return to.server == server; });
}

// Replans and proves.
Plan replanned(const Cluster& cluster, const Catalogs& after) {
  const auto plan = replan(cluster.plan, cluster.catalogs, after, cluster.topology);
  CHECK_NOTHROW(static_cast<void>(prove(plan, after, cluster.topology)));
  CHECK(plan.catalogs_digest == digest_of(after));
  CHECK(replan(cluster.plan, cluster.catalogs, after, cluster.topology) == plan);
  return plan;
}

}  // namespace

TEST_CASE("nothing has changed: the plan is the same") {
  const auto cluster = cluster_of(twice(), true);
  CHECK(replanned(cluster, cluster.catalogs) == cluster.plan);
}

TEST_CASE("a server that leaves is no destination any more, and what it passed on another passes on") {
  for (const bool relay : {false, true}) {
    CAPTURE(relay);
    const auto cluster = cluster_of(twice(), relay);
    for (const std::uint32_t lost : {0U, 3U, 11U}) {
      auto after = cluster.catalogs;
      after.servers[lost].entries = {};
      after.servers[lost].regions.clear();
      const auto plan = replanned(cluster, after);
      CHECK(plan.server_bytes[lost] == 0);
      const auto untouched = std::count_if(cluster.plan.steps.begin(), cluster.plan.steps.end(),
                                           [&](const Step& step) { return !concerns(step, lost); });
      CHECK(untouched > 0);
      CHECK(kept(cluster.plan, plan) == static_cast<std::size_t>(untouched));
      CHECK(plan.amax == cluster.plan.amax);
    }
  }
}

TEST_CASE("a whole replica leaves, and comes back as it was") {
  for (const bool relay : {false, true}) {
    CAPTURE(relay);
    const auto cluster = cluster_of(twice(), relay);
    auto without = cluster.catalogs;
    drop_ranks({{}, {"server:8"}, 0}, without);
    const Cluster half{without, cluster.topology, replanned(cluster, without)};
    for (std::size_t server = 8; server < 16; ++server) CHECK(half.plan.server_bytes[server] == 0);
    const auto plan = replanned(half, cluster.catalogs);
    CHECK(plan.server_bytes == cluster.plan.server_bytes);
    if (relay) {  // its node still takes each byte once
      for (std::size_t server = 8; server < 16; ++server) {
        CHECK(plan.server_loads[server].nvlink_in == plan.server_loads[server - 8].nvlink_in);
      }
    }
  }
}

TEST_CASE("what a lost trainer sent, its replica sends; the others' steps stay") {
  const auto cluster = cluster_of(twice(), false);
  CHECK(prove(cluster.plan, cluster.catalogs, cluster.topology).waiting_steps > 0);
  for (std::uint32_t lost = 0; lost < 6; ++lost) {
    CAPTURE(lost);
    auto after = cluster.catalogs;
    drop_ranks({{}, {"trainer:" + std::to_string(lost)}, 0}, after);
    const auto plan = replanned(cluster, after);
    CHECK(plan.trainer_bytes[lost] == 0);
    const auto heir = (lost + 3) % 6;
    for (std::uint32_t other = 0; other < 6; ++other) {
      if (other == lost || other == heir) continue;
      CHECK(plan.trainer_bytes[other] == cluster.plan.trainer_bytes[other]);
    }
    CHECK(plan.trainer_bytes[heir] == cluster.plan.trainer_bytes[heir] + cluster.plan.trainer_bytes[lost]);
    const auto untouched = std::count_if(cluster.plan.steps.begin(), cluster.plan.steps.end(),
                                         [&](const Step& step) { return step.trainer != lost; });
    CHECK(kept(cluster.plan, plan) == static_cast<std::size_t>(untouched));
  }
}

TEST_CASE("several replicas share what a lost trainer sent, cut between tensors") {
  auto scene = twice();
  scene["trainers"]["layout"]["dp"] = 4;
  scene["trainers"]["hardware"]["nodes"] = 4;
  const auto cluster = cluster_of(scene, true);
  auto after = cluster.catalogs;
  drop_ranks({{}, {"trainer:1"}, 0}, after);
  const auto plan = replanned(cluster, after);
  for (const std::uint32_t heir : {4U, 7U, 10U}) CHECK(plan.trainer_bytes[heir] > cluster.plan.trainer_bytes[heir]);
  drop_ranks({{}, {"trainer:4"}, 0}, after);  // one after the other is as well
  static_cast<void>(replanned({cluster.catalogs, cluster.topology, cluster.plan}, after));
}

TEST_CASE("a trainer that shares one of its tensors alone hands that one over; what it alone held is named") {
  const Box all{2, {0, 0}, {300, 64}};
  const Box upper{2, {0, 0}, {100, 64}};
  const Box lower{2, {100, 0}, {200, 64}};
  Catalogs before{{trainer(0).holds("own", {300, 64}, upper).holds("shared", {300, 64}, upper),
                   trainer(1).holds("own", {300, 64}, lower).holds("shared", {300, 64}, lower),
                   trainer(2).holds("shared", {300, 64}, upper), trainer(3).holds("shared", {300, 64}, lower)},
                  {server(0).takes("own", {300, 64}, all, kFp8).takes("shared", {300, 64}, all, kFp8)}};
  auto after = before;
  drop_ranks({{}, {"trainer:3"}, 0}, after);
  const auto plan = replan(make_plan(before, {}), before, after);
  CHECK(prove(plan, after).waiting_steps >= 2);
  CHECK(plan.trainer_bytes[3] == 0);
  drop_ranks({{}, {"trainer:1"}, 0}, after);
  CHECK_THROWS_WITH(static_cast<void>(replan(make_plan(before, {}), before, after)),
                    "tensor own: trainer 1 is lost, and nobody else holds [100:300, 0:64]; make a new plan");
}

TEST_CASE("a server that takes what no other took needs a new plan, and so does a rank with other entries") {
  const Box all{1, {0}, {16}};
  const Catalogs before{{trainer(0).holds("a", {16}, all)}, {server(0).takes("a", {16}, all)}};
  auto after = before;
  after.servers.push_back(server(1, 1).takes("a", {16}, {1, {0}, {8}}));
  const auto plan = make_plan(before, {});
  CHECK_THROWS_WITH(static_cast<void>(replan(plan, before, after)),
                    "server 1 (replica 1) takes what no server took before; make a new plan");
  after.servers.back() = server(1, 1).takes("a", {16}, all);
  CHECK(replan(plan, before, after).steps.front().destinations.size() == 2);
  after.trainers[0] = trainer(0).holds("a", {16}, all).holds("b", {16}, all);
  CHECK_THROWS_WITH(static_cast<void>(replan(plan, before, after)),
                    "trainer 0 has other entries than before; make a new plan");
}

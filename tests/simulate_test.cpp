// The simulator against times that can be worked out by hand.
#include "schedule/simulate.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string_view>

#include "schedule/planner.h"
#include "schedule/simulate_text.h"
#include "schedule/what_if.h"
#include "tests/made_catalog.h"
#include "tests/scenario_files.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using testing::server;
using testing::trainer;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr double kGbs = 1e9;

Box rows(std::int64_t first, std::int64_t count) { return {2, {first, 0}, {count, 512}}; }  // 1 KiB of BF16 each

// Trainers with equal rows of one tensor of 8 MiB, servers with all of it.
Catalogs cluster(std::uint32_t trainers, std::uint32_t servers) {
  constexpr std::int64_t kRows = 8192;
  Catalogs catalogs;
  for (std::uint32_t i = 0; i < trainers; ++i) {
    catalogs.trainers.push_back(trainer(i).holds("w", {kRows, 512}, rows(i * kRows / trainers, kRows / trainers)));
  }
  for (std::uint32_t i = 0; i < servers; ++i) {
    catalogs.servers.push_back(server(i, i).takes("w", {kRows, 512}, rows(0, kRows)));
  }
  return catalogs;
}

Topology links(const Catalogs& catalogs, double gbs) {
  Topology topology;
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < catalogs.trainers.size(); ++i) topology.trainers.push_back({node++, gbs, 0});
  for (std::size_t i = 0; i < catalogs.servers.size(); ++i) topology.servers.push_back({node++, gbs, 0});
  return topology;
}

SimulationResult simulated(std::uint32_t trainers, std::uint32_t servers, const SimulationOptions& options = {}) {
  const auto catalogs = cluster(trainers, servers);
  PlanOptions plan;
  plan.chunk_bytes = 256 << 10;
  return simulate(make_plan(catalogs, plan), catalogs, links(catalogs, 1), options);
}

const double kWhole = 8.0 * kMiB / kGbs;  // the tensor over one link

}  // namespace

TEST_CASE("one link takes the bytes over its rate, and its efficiency counts") {
  CHECK(simulated(1, 1).makespan_s == doctest::Approx(kWhole));
  SimulationOptions options;
  options.link_efficiency = 0.5;
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(2 * kWhole));
}

TEST_CASE("many senders share a receiver's link, many receivers a sender's") {
  CHECK(simulated(4, 1).makespan_s == doctest::Approx(kWhole).epsilon(0.02));
  CHECK(simulated(1, 4).makespan_s == doctest::Approx(4 * kWhole).epsilon(0.02));
  CHECK(simulated(4, 4).makespan_s == doctest::Approx(kWhole).epsilon(0.10));
  CHECK(simulated(1, 4).binding == "send of trainer 0, busy 100 % of the time");
}

TEST_CASE("a straggler holds everybody up who waits for it") {
  SimulationOptions options;
  options.stragglers = {{Role::trainer, 1, 8}};
  CHECK(simulated(2, 1, options).makespan_s ==
        doctest::Approx(4 * kWhole).epsilon(0.02));  // half the bytes at an eighth
  options.stragglers = {{Role::server, 0, 2}};
  CHECK(simulated(2, 1, options).makespan_s == doctest::Approx(2 * kWhole).epsilon(0.02));
  options.stragglers = {{Role::trainer, 7, 2}};
  CHECK_THROWS_WITH(static_cast<void>(simulated(2, 1, options)),
                    "there is no trainer 7 that could be a straggler: there are 2");
}

TEST_CASE("stages overlap: the slowest sets the time, the others only its beginning") {
  SimulationOptions options;
  options.cast_gbs = 0.25;  // of the link's 1: four times as slow
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(4 * kWhole).epsilon(0.05));
  options.cast_gbs = 4;
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(kWhole).epsilon(0.02));
  options.h2d_gbs = 0.5;
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(2 * kWhole).epsilon(0.05));
}

TEST_CASE("with one put in flight each pays the latency, with many it hides") {
  SimulationOptions options;
  options.latency_us = 262.144;  // as long as 256 KiB take
  options.window = 8;
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(kWhole).epsilon(0.05));
  options.window = 1;
  CHECK(simulated(1, 1, options).makespan_s > 1.3 * kWhole);
}

TEST_CASE("puts cost their overhead, and a crowd at one receiver costs its penalty") {
  SimulationOptions options;
  options.put_overhead_us = 262.144;
  CHECK(simulated(1, 1, options).makespan_s == doctest::Approx(2 * kWhole).epsilon(0.05));
  SimulationOptions crowded;
  crowded.incast_senders = 2;
  crowded.incast_penalty = 0.5;
  CHECK(simulated(4, 1, crowded).makespan_s == doctest::Approx(2 * kWhole).epsilon(0.1));
  CHECK(simulated(2, 1, crowded).makespan_s == doctest::Approx(kWhole).epsilon(0.02));
}

TEST_CASE("verification follows the last byte, and each way to land has its stall") {
  SimulationOptions options;
  options.verify_gbs = 2;
  options.copy_gbs = 4;
  options.commit_ms = 1;
  options.delta_changed = 0.25;
  options.delta_scatter_gbs = 1;
  const auto result = simulated(1, 1, options);
  CHECK(result.landed_s == doctest::Approx(kWhole));
  CHECK(result.makespan_s == doctest::Approx(1.5 * kWhole));
  CHECK(result.staged_stall_ms == doctest::Approx(1 + 250 * kWhole));
  CHECK(result.delta_stall_ms == doctest::Approx(1 + 250 * kWhole));
  CHECK(result.in_place_stall_ms == doctest::Approx(1 + 1500 * kWhole));
}

TEST_CASE("jitter comes from the seed alone") {
  SimulationOptions options;
  options.jitter = 0.2;
  const auto first = simulated(2, 2, options);
  CHECK(simulated(2, 2, options).makespan_s == first.makespan_s);
  CHECK(first.makespan_s == doctest::Approx(1.2 * kWhole).epsilon(0.1));
  options.seed = 2;
  CHECK(simulated(2, 2, options).makespan_s != first.makespan_s);
}

namespace {

// Two trainers with half a tensor each, two servers with all of it, each on a node of its own or both on one.
struct Relayed {
  explicit Relayed(bool share_node) : catalogs(cluster(2, 2)), topology(links(catalogs, 1)) {
    for (std::size_t i = 0; i < 2; ++i) {
      topology.servers[i].nvlink_gbs = 100;
      if (share_node) topology.servers[i].node = topology.servers[0].node;
    }
    plan = planned(true);
  }
  [[nodiscard]] Plan planned(bool relay) const {
    return make_plan(catalogs, topology, PlanOptions{.chunk_bytes = 256 << 10, .relay = relay});
  }
  [[nodiscard]] SimulationResult simulated(const SimulationOptions& options = {}) const {
    return simulate(plan, catalogs, topology, options);
  }

  Catalogs catalogs;
  Topology topology;
  Plan plan;
};

const StageUse& stage_of(const SimulationResult& result, std::string_view name) {
  const auto found =
      std::find_if(result.stages.begin(), result.stages.end(), [&](const StageUse& use) { return use.stage == name; });
  REQUIRE(found != result.stages.end());
  return *found;
}

}  // namespace

TEST_CASE("with relay each NIC of a node takes its share once, and NVLink the rest in a hundredth of that time") {
  Relayed relayed(true);
  const auto result = relayed.simulated();
  CHECK(result.makespan_s == doctest::Approx(0.5 * kWhole).epsilon(0.03));
  CHECK(stage_of(result, "take").mean > 0.95);
  CHECK(stage_of(result, "relay").mean == doctest::Approx(0.01).epsilon(0.05));
  relayed.plan = relayed.planned(false);
  const auto direct = relayed.simulated();
  CHECK(direct.makespan_s == doctest::Approx(kWhole).epsilon(0.03));
  CHECK(std::none_of(direct.stages.begin(), direct.stages.end(), [](const auto& use) { return use.stage == "relay"; }));
}

TEST_CASE("where NVLink is slower than the NICs, what is passed on sets the time") {
  Relayed relayed(true);
  for (auto& server : relayed.topology.servers) server.nvlink_gbs = 0.25;
  const auto result = relayed.simulated();  // each passes half a tensor on
  CHECK(result.makespan_s == doctest::Approx(2 * kWhole).epsilon(0.05));
  CHECK(result.binding.starts_with("relay of server"));
}

TEST_CASE("a relay that straggles holds up whom it serves, who would be ready in time without it") {
  SimulationOptions options;
  options.stragglers = {{Role::server, 0, 4}};
  Relayed relayed(true);
  const auto result = relayed.simulated(options);
  CHECK(result.server_ready_s[0] == doctest::Approx(2 * kWhole).epsilon(0.05));
  CHECK(result.server_ready_s[1] == doctest::Approx(2 * kWhole).epsilon(0.05));
  relayed.plan = relayed.planned(false);
  const auto direct = relayed.simulated(options);
  CHECK(direct.server_ready_s[0] == doctest::Approx(4 * kWhole).epsilon(0.05));
  CHECK(direct.server_ready_s[1] < 1.5 * kWhole);
}

TEST_CASE("from node to node a replica passes on through its NIC, and spares a slow trainer the second put") {
  Relayed relayed(false);
  for (auto& trainer : relayed.topology.trainers) trainer.nic_gbs = 0.5;
  relayed.plan = relayed.planned(true);
  const auto result = relayed.simulated();
  CHECK(result.makespan_s == doctest::Approx(kWhole).epsilon(0.05));
  CHECK(std::any_of(result.spans.begin(), result.spans.end(),
                    [](const Span& span) { return span.role == Role::server && lanes()[span.lane] == "send"; }));
  relayed.plan = relayed.planned(false);
  CHECK(relayed.simulated().makespan_s == doctest::Approx(2 * kWhole).epsilon(0.05));
}

TEST_CASE("told to gather, a trainer's thread takes its time before each put") {
  SimulationOptions options;
  options.gather = GatherBehaviour{1e3 * 3 * kWhole, ".experts."};
  const auto result = simulated(2, 1, options);
  CHECK(result.makespan_s > 3 * kWhole);
  CHECK(result.makespan_s < 4.1 * kWhole);
}

TEST_CASE("catalogs without rates cannot be simulated") {
  const auto catalogs = cluster(1, 1);
  CHECK_THROWS_WITH(static_cast<void>(simulate(make_plan(catalogs, {}), catalogs, {}, {})),
                    "trainer 0 has no NIC rate: simulate a scenario, or give the rates of catalogs");
}

TEST_CASE("a trace has a process for each rank, and a measured run stands beside it") {
  const auto result = simulated(1, 1);
  const auto planned = nlohmann::json::parse(to_trace(result, "", ""));
  CHECK(planned["traceEvents"].size() > 4);
  const auto both = to_trace(result, R"({"traceEvents": [
    {"ph": "M", "pid": 0, "tid": 0, "name": "process_name", "args": {"name": "trainer 0"}},
    {"ph": "X", "pid": 0, "tid": 0, "name": "send", "ts": 0, "dur": 5}]})",
                             "run.json");
  CHECK(both.find("trainer 0, measured") != std::string::npos);
  CHECK_THROWS_WITH(static_cast<void>(to_trace(result, "[]", "run.json")), doctest::Contains("run.json: is no trace"));
}

TEST_CASE("what if: changes of a scenario reach its catalogs and links, and a senseless one is named") {
  const auto text = testing::small_scene().dump();
  const auto changed = [&](WhatIf changes) { return parse_scenario(text, "scene.json", changes); };
  CHECK(topology_of(changed({{"server.nic_gbs=25"}, {}, 0})).servers[3].nic_gbs == 25);
  CHECK(topology_of(changed({{"server.nic_gbps=200"}, {}, 0})).servers[0].nic_gbs == 25);
  CHECK(changed({{"simulation.window=3"}, {}, 0}).simulation.window == 3);
  CHECK(changed({{"recipe=bf16"}, {}, 0}).recipe == Recipe::bf16);
  CHECK(catalogs_of(changed({{}, {}, 2})).servers.size() == 12);
  CHECK_THROWS_WITH(changed({{"server.nic_gb=25"}, {}, 0}), doctest::Contains("unknown key \"nic_gb\""));
  CHECK_THROWS_WITH(changed({{"sever.nic_gbs=25"}, {}, 0}), doctest::Contains("the nearest is \"server\""));
  CHECK_THROWS_WITH(changed({{"simulation.window=0"}, {}, 0}), doctest::Contains("/simulation/window"));
}

TEST_CASE("what if: a dropped server takes its replica with it, a dropped trainer only itself") {
  auto catalogs = cluster(2, 2);
  drop_ranks({{}, {"server:1"}, 0}, catalogs);
  CHECK(catalogs.servers[1].entries.empty());
  CHECK_FALSE(catalogs.servers[0].entries.empty());
  CHECK_NOTHROW(static_cast<void>(make_plan(catalogs, {})));
  drop_ranks({{}, {"trainer:0"}, 0}, catalogs);
  CHECK_THROWS_AS(static_cast<void>(make_plan(catalogs, {})), Error);  // nobody else holds its rows
  CHECK_THROWS_WITH(drop_ranks({{}, {"trainer:9"}, 0}, catalogs), doctest::Contains("there are 2 trainers"));
  CHECK_THROWS_WITH(drop_ranks({{}, {"trainer"}, 0}, catalogs),
                    doctest::Contains("must be trainer:RANK or server:RANK"));
}

}  // namespace weightcast

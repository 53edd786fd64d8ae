#include "schedule/planner.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "schedule/proof.h"
#include "tests/made_catalog.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

std::string error_of(const Catalogs& catalogs, const PlanOptions& options = {}) {
  try {
    const auto plan = make_plan(catalogs, options);
    return fmt::format("planned {} steps", plan.steps.size());
  } catch (const Error& error) {
    CHECK(error.code() == Code::invalid_argument);
    return error.what();
  }
}

// Trainers that cut a tensor's columns at 80, servers that cut them at 128.
Catalogs columns_of_two(Recipe recipe) {
  const std::vector<std::int64_t> shape{96, 256};
  return {{trainer(0).holds("w", shape, {2, {0, 0}, {96, 80}}), trainer(1).holds("w", shape, {2, {0, 80}, {96, 176}})},
          {server(0).takes("w", shape, {2, {0, 0}, {96, 128}}, recipe),
           server(1).takes("w", shape, {2, {0, 128}, {96, 128}}, recipe)}};
}

}  // namespace

TEST_CASE("row shards meet a column slice: each trainer sends what it holds of it") {
  const Catalogs catalogs{
      {trainer(0).holds("w", {8, 6}, {2, {0, 0}, {4, 6}}), trainer(1).holds("w", {8, 6}, {2, {4, 0}, {4, 6}})},
      {server(0).takes("w", {8, 6}, {2, {0, 3}, {8, 3}})}};
  const auto plan = make_plan(catalogs, {});
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
  REQUIRE(plan.steps.size() == 2);
  CHECK(to_string(plan.steps[0].box) == "[0:4, 3:6]");
  CHECK(to_string(plan.steps[1].box) == "[4:8, 3:6]");
  CHECK(plan.steps[1].trainer == 1);
  CHECK(to_string(plan.steps[1].frame) == "[0:8, 3:6]");
  CHECK(plan.trainer_bytes == std::vector<std::uint64_t>{24, 24});
  CHECK(plan.server_bytes == std::vector<std::uint64_t>{48});
  CHECK(plan.scale_steps.empty());
  CHECK(plan.amax.empty());
}

TEST_CASE("the same slice on two replicas is cast once and put to both") {
  const Catalogs catalogs{
      {trainer(0).holds("w", {4, 4}, {2, {0, 0}, {4, 4}})},
      {server(0, 0).takes("w", {4, 4}, {2, {0, 0}, {4, 4}}), server(1, 1).takes("w", {4, 4}, {2, {0, 0}, {4, 4}})}};
  const auto plan = make_plan(catalogs, {});
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
  REQUIRE(plan.steps.size() == 1);
  CHECK(plan.steps[0].destinations.size() == 2);
  CHECK(plan.trainer_bytes.front() == 64);
}

TEST_CASE("trainers that hold the same box share the load") {
  Rank first = trainer(0), second = trainer(1), taker = server(0);
  for (const auto* name : {"a", "b", "c", "d"}) {
    first.holds(name, {16}, {1, {0}, {16}});
    second.holds(name, {16}, {1, {0}, {16}});
    taker.takes(name, {16}, {1, {0}, {16}});
  }
  const auto plan = make_plan({{first, second}, {taker}}, {});
  CHECK(plan.trainer_bytes == std::vector<std::uint64_t>{64, 64});
}

TEST_CASE("a block that straddles two shards: amax is exchanged both ways, one owner writes its scale") {
  const Catalogs catalogs{{trainer(0).holds("w", {288, 128}, {2, {0, 0}, {144, 128}}),
                           trainer(1).holds("w", {288, 128}, {2, {144, 0}, {144, 128}})},
                          {server(0).takes("w", {288, 128}, {2, {0, 0}, {288, 128}}, kFp8)}};
  const auto plan = make_plan(catalogs, {});
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
  REQUIRE(plan.steps.size() == 2);
  CHECK(plan.steps[0].needs_amax);
  CHECK(plan.steps[1].needs_amax);
  REQUIRE(plan.amax.size() == 2);
  for (const auto& exchange : plan.amax) {
    CHECK(exchange.from != exchange.to);
    REQUIRE(exchange.runs.size() == 1);
    CHECK(to_string(exchange.runs[0].blocks) == "[1:2, 0:1]");
  }
  std::int64_t scales = 0;
  for (const auto& step : plan.scale_steps) scales += elements(step.blocks);
  CHECK(scales == 3);
}

TEST_CASE(
    "where blocks span an axis every part of a tensor waits for the maxima of all, and every slice gets the scale") {
  for (const Recipe recipe : {Recipe::fp8_e4m3_tensor, Recipe::fp8_e4m3_channel}) {
    CAPTURE(to_string(recipe));
    const auto catalogs = columns_of_two(recipe);
    const auto plan = make_plan(catalogs, {});
    CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
    for (const auto& step : plan.steps) CHECK(step.needs_amax);
    CHECK(plan.amax.size() == 2);
    const std::int64_t scales = recipe == Recipe::fp8_e4m3_tensor ? 1 : 96;
    std::vector<std::int64_t> written(2);
    for (const auto& step : plan.scale_steps) {
      for (const auto& to : step.destinations) written[to.server] += elements(step.blocks);
    }
    CHECK(written == std::vector<std::int64_t>{scales, scales});
  }
}

TEST_CASE("rows that a trainer has whole need nobody else's maxima, and scales of one byte count as such") {
  const std::vector<std::int64_t> shape{96, 256};
  for (const Recipe recipe : {Recipe::fp8_e4m3_channel, Recipe::mxfp8_e4m3_1x32}) {
    CAPTURE(to_string(recipe));
    const Catalogs catalogs{
        {trainer(0).holds("w", shape, {2, {0, 0}, {37, 256}}), trainer(1).holds("w", shape, {2, {37, 0}, {59, 256}})},
        {server(0).takes("w", shape, {2, {0, 0}, {96, 256}}, recipe)}};
    const auto plan = make_plan(catalogs, {});
    CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
    for (const auto& step : plan.steps) CHECK_FALSE(step.needs_amax);
    CHECK(plan.amax.empty());
    const std::uint64_t scales = recipe == Recipe::mxfp8_e4m3_1x32 ? 96 * 8 : 96 * 4;
    CHECK(plan.server_bytes == std::vector<std::uint64_t>{96 * 256 + scales});
  }
}

TEST_CASE("half bytes go out with their blocks' scales, and with the scale of the tensor, whose amax is everybody's") {
  const auto catalogs = columns_of_two(Recipe::nvfp4_e2m1_1x16);
  const auto plan = make_plan(catalogs, {});
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
  for (const auto& step : plan.steps) CHECK(step.needs_amax);
  REQUIRE(plan.amax.size() == 2);
  CHECK(plan.amax[0].runs.front().recipe == Recipe::nvfp4_tensor_scale);
  CHECK(plan.server_bytes == std::vector<std::uint64_t>(2, 96 * 128 / 2 + 96 * 128 / 16 + 4));
}

TEST_CASE("trainers' slices that cut a block of half bytes are refused by tensor, trainer and slice") {
  const std::vector<std::int64_t> shape{96, 256};
  CHECK(error_of({{trainer(0).holds("w", shape, {2, {0, 0}, {96, 81}}),
                   trainer(1).holds("w", shape, {2, {0, 81}, {96, 175}})},
                  {server(0).takes("w", shape, {2, {0, 0}, {96, 256}}, Recipe::nvfp4_e2m1_1x16)}}) ==
        "tensor w: trainer 0 holds [0:96, 0:81], which cuts blocks of 1x16 of nvfp4_e2m1_1x16, two values to a byte: "
        "slices of its columns must begin and end at multiples of 16");
}

TEST_CASE("errors name the tensor, the ranks, the boxes and the nearest name") {
  const Box all{2, {0, 0}, {4, 4}};
  const Box upper{2, {0, 0}, {2, 4}};
  CHECK(error_of({{trainer(0).holds("layer.q_proj", {4, 4}, all)}, {server(0).takes("layer.q_prj", {4, 4}, all)}}) ==
        "missing tensor layer.q_prj: server 0 (replica 0) takes it, no trainer holds it; the nearest name that a "
        "trainer holds is layer.q_proj; both sides must use the names of one checkpoint");
  CHECK(
      error_of({{trainer(0).holds("w", {4, 4}, upper)}, {server(0).takes("w", {4, 4}, all)}}) ==
      "tensor w: server 0 takes [0:4, 0:4], of which no trainer holds [2:4, 0:4]; some trainer must hold every element "
      "that a server takes");
  CHECK(error_of({{trainer(0).holds("w", {4, 4}, all)}, {server(0).takes("w", {4, 8}, {2, {0, 0}, {4, 8}})}}) ==
        "tensor w: trainer 0 has the shape [0:4, 0:4], server 0 (replica 0) has [0:4, 0:8]; all must be of one "
        "checkpoint");
  CHECK(error_of({{trainer(0).holds("w", {4, 4}, all), trainer(1).holds("w", {4, 4}, upper)},
                  {server(0).takes("w", {4, 4}, all)}}) ==
        "tensor w: [0:2, 0:4] of trainer 1 overlaps [0:4, 0:4] of trainer 0; shards must be the same box (replicas) or "
        "share nothing");
  CHECK(error_of({{trainer(1).holds("w", {4, 4}, all)}, {server(0).takes("w", {4, 4}, all)}}) ==
        "the catalog of trainer 1 stands where trainer 0 is expected: ranks count from 0 without gaps");
}

TEST_CASE("a tensor that no server takes is refused, unless a pattern says that it is unused") {
  const Catalogs catalogs{{trainer(0).holds("a.weight", {4}, {1, {0}, {4}}).holds("a.inv_freq", {4}, {1, {0}, {4}})},
                          {server(0).takes("a.weight", {4}, {1, {0}, {4}})}};
  CHECK(error_of(catalogs).find("extra tensor a.inv_freq: trainer 0 holds it, no server takes it") == 0);
  CHECK(error_of(catalogs, {1024, {"*.inv_freq"}}) == "planned 1 steps");
  CHECK(error_of(catalogs, {1024, {"*.inv_freq*x"}}).find("extra tensor") == 0);
}

TEST_CASE("each trainer begins with another server, and with steps that wait for no amax") {
  Rank sources[] = {trainer(0), trainer(1)};
  Rank takers[] = {server(0), server(1)};
  for (std::int64_t i = 0; i < 2; ++i) {
    sources[i].holds("w", {288, 256}, {2, {144 * i, 0}, {144, 256}}).holds("n", {4, 8}, {2, {2 * i, 0}, {2, 8}});
    takers[i].takes("w", {288, 256}, {2, {0, 128 * i}, {288, 128}}, kFp8).takes("n", {4, 8}, {2, {0, 4 * i}, {4, 4}});
  }
  const auto plan = make_plan({{sources[0], sources[1]}, {takers[0], takers[1]}}, {});
  REQUIRE(plan.steps.size() == 8);
  for (std::uint32_t i = 0; i < 8; ++i) {
    const auto& step = plan.steps[i];
    CHECK(step.trainer == i / 4);
    CHECK(step.needs_amax == (i % 4 >= 2));
    CHECK(step.destinations.front().server == (step.trainer + i % 2) % 2);
  }
}

TEST_CASE("tensors that are held and taken alike are one family, whose replicas share the sending by tensors") {
  Rank sources[] = {trainer(0), trainer(1)};
  Rank taker = server(0);
  for (const auto* name : {"a", "b", "c", "d"}) {
    for (auto& source : sources) source.holds(name, {16}, {1, {0}, {16}});
    taker.takes(name, {16}, {1, {0}, {16}});
  }
  const auto plan = make_plan({{sources[0], sources[1]}, {taker}}, {});
  REQUIRE(plan.steps.size() == 2);
  CHECK(plan.columns == std::vector<Column>{{0, 1, 2, 3}});
  CHECK(plan.steps[0].count == 2);
  CHECK(plan.steps[1].first == 2);
}

TEST_CASE("a replica that sends nothing else takes most of a tensor, which is cut at rows") {
  const Box all{2, {0, 0}, {96, 8}};
  const Catalogs catalogs{{trainer(0).holds("w", {96, 8}, all).holds("v", {32, 8}, {2, {0, 0}, {32, 8}}),
                           trainer(1).holds("w", {96, 8}, all)},
                          {server(0).takes("w", {96, 8}, all).takes("v", {32, 8}, {2, {0, 0}, {32, 8}})}};
  const auto plan = make_plan(catalogs, {});
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
  CHECK(plan.trainer_bytes == std::vector<std::uint64_t>{1024, 1024});
}

TEST_CASE("two receivers that pass on to each other are served one after the other") {
  const Topology topology{{{0, 50, 0}}, {{1, 50, 400}, {1, 50, 400}}};
  auto holder = trainer(0);
  auto first = server(0, 0);
  auto second = server(1, 1);
  for (int tensor = 0; tensor < 32; ++tensor) {
    const auto name = "w" + std::to_string(tensor);
    const Box all{2, {0, 0}, {64, 8}};
    holder.holds(name, {64, 8}, all);
    first.takes(name, {64, 8}, all);
    second.takes(name, {64, 8}, all);
  }
  const Catalogs catalogs{{holder}, {first, second}};
  PlanOptions options;
  options.relay = true;
  const auto plan = make_plan(catalogs, topology, options);
  CHECK(prove(plan, catalogs, topology).relayed_bytes > 0);
  std::size_t switches = 0;
  for (std::size_t i = 1; i < plan.steps.size(); ++i) {
    switches += plan.steps[i].destinations.front().server != plan.steps[i - 1].destinations.front().server;
  }
  CHECK(switches == 1);
}

TEST_CASE("a large tensor goes out in pieces, which are verified and passed on one by one") {
  const std::vector<std::int64_t> shape{3 << 14, 512};  // 48 MiB
  const Box all{2, {0, 0}, {3 << 14, 512}};
  const Catalogs catalogs{{trainer(0).holds("w", shape, all)}, {server(0).takes("w", shape, all)}};
  const auto plan = make_plan(catalogs, {});
  CHECK(plan.steps.size() == 2);
  CHECK_NOTHROW(static_cast<void>(prove(plan, catalogs)));
}

TEST_CASE("with relay a node receives a tensor once, spread over its NICs, and passes it on") {
  const Box all{2, {0, 0}, {64, 8}};
  Catalogs catalogs{{trainer(0).holds("w", {64, 8}, all)}, {}};
  Topology topology;
  topology.trainers.push_back({0, 400, 0});
  for (std::uint32_t i = 0; i < 4; ++i) {
    catalogs.servers.push_back(server(i, i).takes("w", {64, 8}, all));
    topology.servers.push_back({1 + i / 2, 50, 400});
  }
  PlanOptions options;
  options.relay = true;
  const auto plan = make_plan(catalogs, topology, options);
  CHECK(prove(plan, catalogs, topology).relayed_bytes == 2048);
  CHECK(plan.trainer_bytes == std::vector<std::uint64_t>{2048});
  CHECK(plan.server_bytes == std::vector<std::uint64_t>(4, 1024));
  for (const auto& load : plan.server_loads) CHECK(load == ServerLoad{512, 0, 512, 512});
  CHECK(make_plan(catalogs, topology, options) == plan);

  topology.trainers[0].nic_gbs = 25;  // now it sends once, and one node passes it on to the other
  const auto spared = make_plan(catalogs, topology, options);
  CHECK(prove(spared, catalogs, topology).relayed_bytes == 3072);
  CHECK(spared.trainer_bytes == std::vector<std::uint64_t>{1024});
  options.relay = false;
  CHECK(make_plan(catalogs, topology, options).trainer_bytes == std::vector<std::uint64_t>{4096});
}

TEST_CASE("scratch memory that cannot hold the largest piece is refused, with the number that can") {
  const Catalogs catalogs{{trainer(0).holds("w", {256, 512}, {2, {0, 0}, {256, 512}})},
                          {server(0).takes("w", {256, 512}, {2, {0, 0}, {256, 512}}, kFp8)}};
  PlanOptions options;
  options.scratch_bytes = 65535;
  CHECK(error_of(catalogs, options).find("raise scratch_bytes to 131072 or lower chunk_bytes") != std::string::npos);
  options.chunk_bytes = 4096;  // a row of blocks at least
  CHECK(error_of(catalogs, options).find("raise scratch_bytes to 65536") != std::string::npos);
  options.scratch_bytes = 65536;
  CHECK(error_of(catalogs, options) == "planned 1 steps");
}

TEST_CASE("chunks end at words of the frame, at blocks, or after whole rows") {
  const auto chunks = [](const Box& box, const Box& frame, Recipe recipe, std::uint64_t chunk_bytes) {
    std::string text;
    for (const auto& chunk : chunks_of(box, frame, recipe, chunk_bytes)) text += to_string(chunk);
    return text;
  };
  CHECK(chunks({1, {3}, {10}}, {1, {1}, {20}}, Recipe::bf16, 9) == "[3:5][5:9][9:13]");
  CHECK(chunks({2, {5, 0}, {5, 4}}, {2, {0, 0}, {10, 4}}, Recipe::bf16, 16) == "[5:7, 0:4][7:9, 0:4][9:10, 0:4]");
  CHECK(chunks({2, {100, 0}, {200, 8}}, {2, {0, 0}, {300, 8}}, kFp8, 1) ==
        "[100:128, 0:8][128:256, 0:8][256:300, 0:8]");
  CHECK(chunks({3, {0, 0, 0}, {3, 2, 4}}, {3, {0, 0, 0}, {3, 2, 4}}, Recipe::fp32, 64) ==
        "[0:2, 0:2, 0:4][2:3, 0:2, 0:4]");
}

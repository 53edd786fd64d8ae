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

TEST_CASE("errors name the tensor, the ranks, the boxes and the nearest name") {
  const Box all{2, {0, 0}, {4, 4}};
  const Box upper{2, {0, 0}, {2, 4}};
  CHECK(error_of({{trainer(0).holds("layer.q_proj", {4, 4}, all)}, {server(0).takes("layer.q_prj", {4, 4}, all)}}) ==
        "missing tensor layer.q_prj: server 0 (replica 0) takes it, no trainer holds it; the nearest name that a "
        "trainer holds "
        "is layer.q_proj");
  CHECK(error_of({{trainer(0).holds("w", {4, 4}, upper)}, {server(0).takes("w", {4, 4}, all)}}) ==
        "tensor w: server 0 (replica 0) takes [0:4, 0:4], of which no trainer holds [2:4, 0:4]");
}

// Every single change to a right plan is found: plans of the planner, damaged one place at a time.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "schedule/planner.h"
#include "schedule/proof.h"
#include "tests/made_catalog.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

// Rows cut inside blocks over three trainers; two replicas of two servers that slice columns or rows.
Catalogs sliced() {
  std::vector<Rank> trainers = {trainer(0), trainer(1), trainer(2)};
  const std::vector<std::pair<std::int64_t, std::int64_t>> rows = {{0, 100}, {100, 100}, {200, 120}};
  for (std::size_t i = 0; i < trainers.size(); ++i) {
    const auto [first, count] = rows[i];
    trainers[i].holds("up", {320, 256}, {2, {first, 0}, {count, 256}});
    trainers[i].holds("down", {256, 320}, {2, {0, first}, {256, count}});
  }
  trainers[1].holds("norm", {40}, {1, {0}, {40}});
  std::vector<Rank> servers;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const auto first = 128 * static_cast<std::int64_t>(i % 2);
    servers.push_back(server(i, i / 2));
    servers.back().takes("up", {320, 256}, {2, {0, first}, {320, 128}}, kFp8);
    servers.back().takes("down", {256, 320}, {2, {first, 0}, {128, 320}}, kFp8);
    servers.back().takes("norm", {40}, {1, {0}, {40}});
  }
  return {{trainers.begin(), trainers.end()}, {servers.begin(), servers.end()}};
}

// Experts of three axes, each whole on one trainer, and a matrix that goes as it is.
Catalogs experts() {
  std::vector<Rank> trainers = {trainer(0), trainer(1)};
  Rank taker = server(0);
  for (std::int64_t i = 0; i < 2; ++i) {
    trainers[static_cast<std::size_t>(i)].holds("experts", {4, 130, 64}, {3, {2 * i, 0, 0}, {2, 130, 64}});
    trainers[static_cast<std::size_t>(i)].holds("head", {16, 64}, {2, {8 * i, 0}, {8, 64}});
  }
  taker.takes("experts", {4, 130, 64}, {3, {0, 0, 0}, {4, 130, 64}}, kFp8).takes("head", {16, 64}, {2, {}, {16, 64}});
  return {{trainers.begin(), trainers.end()}, {taker}};
}

bool is_proved(const Plan& plan, const Catalogs& catalogs) {
  try {
    static_cast<void>(prove(plan, catalogs));
    return true;
  } catch (const Error& error) {
    CHECK(error.code() == Code::corrupted);
    return false;
  }
}

template <class Value>
Value copy_of(const Value& value) {
  return value;
}

// Checks that changes of one plan are found; a change that changes nothing is passed over.
struct Damage {
  const Catalogs& catalogs;
  const Plan plan;
  int found = 0;

  void try_one(const std::string& what, const std::function<void(Plan&)>& change) {
    Plan damaged = plan;
    change(damaged);
    if (damaged == plan) return;
    CAPTURE(what);
    CHECK_FALSE(is_proved(damaged, catalogs));
    ++found;
  }

  // The changes that fit steps and scale steps alike. `box` picks the box of one, `list` the steps of a plan.
  template <class List, class Box>
  void try_steps(List list, Box box) {
    auto steps = plan;
    for (std::size_t i = 0; i < list(steps).size(); ++i) {
      const auto step = std::to_string(i);
      try_one("drop " + step, [&](Plan& p) { list(p).erase(list(p).begin() + static_cast<std::ptrdiff_t>(i)); });
      try_one("repeat " + step, [&](Plan& p) { list(p).push_back(copy_of(list(p)[i])); });
      try_one("no destination " + step, [&](Plan& p) { list(p)[i].destinations.pop_back(); });
      try_one("destination twice " + step,
              [&](Plan& p) { list(p)[i].destinations.push_back(copy_of(list(p)[i].destinations[0])); });
      for (std::size_t axis = 0; axis < box(list(steps)[i]).axes; ++axis) {
        for (const int by : {-1, 1}) {
          try_one("shift " + step, [&](Plan& p) { box(list(p)[i]).offset[axis] += by; });
          try_one("grow " + step, [&](Plan& p) { box(list(p)[i]).extent[axis] += by; });
          try_one("frame " + step, [&](Plan& p) { list(p)[i].frame.offset[axis] += by; });
        }
      }
      try_indexes(list, i);
    }
  }

  template <class List>
  void try_indexes(List list, std::size_t i) {
    for (std::uint32_t index = 0; index < 8; ++index) {
      const auto to = " of " + std::to_string(i) + " becomes " + std::to_string(index);
      try_one("trainer" + to, [&](Plan& p) { list(p)[i].trainer = index; });
      try_one("source entry" + to, [&](Plan& p) { list(p)[i].column = index; });
      try_one("server" + to, [&](Plan& p) { list(p)[i].destinations[0].server = index; });
      try_one("destination entry" + to, [&](Plan& p) { list(p)[i].destinations[0].column = index; });
    }
  }

  void try_everything() {
    REQUIRE(is_proved(plan, catalogs));
    try_steps(
        [](Plan & p) -> auto& { return p.steps; }, [](auto& step) -> auto& { return step.box; });
    try_steps(
        [](Plan & p) -> auto& { return p.scale_steps; }, [](auto& step) -> auto& { return step.blocks; });
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      try_one("chunks", [&](Plan& p) { ++p.steps[i].chunks; });
      try_one("recipe", [&](Plan& p) { p.steps[i].recipe = Recipe::fp16; });
      try_one("no wait", [&](Plan& p) { p.steps[i].needs_amax = false; });
    }
    for (std::size_t i = 0; i < plan.amax.size(); ++i) {
      try_one("drop exchange", [&](Plan& p) { p.amax.erase(p.amax.begin() + static_cast<std::ptrdiff_t>(i)); });
      try_one("other receiver", [&](Plan& p) { p.amax[i].to = (p.amax[i].to + 1) % 3; });
      for (std::size_t run = 0; run < plan.amax[i].runs.size(); ++run) {
        const auto at = static_cast<std::ptrdiff_t>(run);
        try_one("drop run", [&](Plan& p) { p.amax[i].runs.erase(p.amax[i].runs.begin() + at); });
        try_one("repeat run", [&](Plan& p) { p.amax[i].runs.push_back(copy_of(p.amax[i].runs[run])); });
        try_one("shift run", [&](Plan& p) { ++p.amax[i].runs[run].blocks.offset[0]; });
        try_one("shift run", [&](Plan& p) { ++p.amax[i].runs[run].blocks.offset[1]; });
        try_one("other entry", [&](Plan& p) { p.amax[i].runs[run].from_column ^= 1; });
      }
    }
  }
};

}  // namespace

TEST_CASE("every damage to a plan with straddling blocks, slices and replicas is found") {
  const auto catalogs = sliced();
  Damage damage{catalogs, make_plan(catalogs, {.chunk_bytes = 8192, .unused_tensors = {}})};
  CHECK(prove(damage.plan, catalogs).waiting_steps > 0);
  damage.try_everything();
  CHECK(damage.found > 500);
}

TEST_CASE("every damage to a plan of expert stacks is found") {
  const auto catalogs = experts();
  Damage damage{catalogs, make_plan(catalogs, {.chunk_bytes = 8192, .unused_tensors = {}})};
  damage.try_everything();
  CHECK(damage.found > 100);
}

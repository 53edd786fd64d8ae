#include "schedule/proof.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/small_world.h"
#include "transport/base/status.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

// What the proof says of the world after a change; empty when it holds.
std::string violation(const std::function<void(World&)>& change) {
  auto changed = world();
  change(changed);
  try {
    static_cast<void>(prove(changed.plan, changed.catalogs));
  } catch (const Error& error) {
    CHECK(error.code() == Code::corrupted);
    const std::string text = error.what();
    const std::string prefix = "the plan is wrong and is not used: ";
    REQUIRE(text.starts_with(prefix));
    return text.substr(prefix.size());
  }
  return "";
}

}  // namespace

TEST_CASE("a right plan is proved, with its figures") {
  const auto w = world();
  const auto proof = prove(w.plan, w.catalogs);
  CHECK(proof.destination_bytes == 65536 + 128 + 16 + 32768 + 8);
  CHECK(proof.relayed_bytes == 0);
  CHECK(proof.scales == 6);
  CHECK(proof.waiting_steps == 4);
}

TEST_CASE("bytes that nobody writes are named") {
  CHECK(violation([](World& w) { w.plan.steps.erase(w.plan.steps.begin() + 3); }) ==
        "[144:256, 0:256] of server 0's entry 0 (w [0:256, 0:256]) is written by nobody");
  CHECK(violation([](World& w) { w.plan.steps[2].box.extent[0] = 60; }) ==
        "[60:64] of server 0's entry 2 (norm [0:64]) is written by nobody");
  CHECK(violation([](World& w) { w.plan.steps.erase(w.plan.steps.begin() + 2); }) ==
        "entry 2 of server 0 (norm [0:64]) is written by nobody");
  CHECK(violation([](World& w) {
          w.plan.steps[4].box = {2, {152, 128}, {104, 128}};
        }).find("[144:152, 128:256] of server 1's entry 0 (w [0:256, 128:256]) is written by nobody") == 0);
}

TEST_CASE("bytes that are written twice are named, with both steps") {
  CHECK(
      violation([](World& w) { w.plan.steps.push_back(w.plan.steps[2]); }) ==
      "[0:64] of server 0's entry 2 is written twice: by step 2 (trainer 0 sends norm [0:64]) and by step 5 (trainer 0 "
      "sends norm [0:64])");
  CHECK(violation([](World& w) {
          w.plan.steps[0].destinations.push_back(w.plan.steps[0].destinations[0]);
        }).find("is written twice: by step 0 (trainer 0 sends w [0:144, 0:256]) and by step 0") != std::string::npos);
}

TEST_CASE("a trainer that sends what it does not hold is named") {
  CHECK(violation([](World& w) { w.plan.steps[0].trainer = 1; }) ==
        "step 0 (trainer 1 sends w [0:144, 0:256]), but holds [144:256, 0:256] in its entry 0");
  CHECK(violation([](World& w) { w.plan.steps[0].box.offset[0] = 1; }).find("but holds [0:144, 0:256]") !=
        std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[2].column = 0; }).find("step 2 (trainer 0 sends w [0:64])") == 0);
  CHECK(violation([](World& w) {
          w.plan.steps[2].column = 2;
        }).find("step 2 names column 2: there is no entry 2, there are 2") == 0);
  CHECK(violation([](World& w) { w.plan.steps[2].trainer = 2; }) ==
        "step 2 is for trainer 2, but there are 2 trainers");
  CHECK(violation([](World& w) { w.plan.steps[2].box.extent[0] = 0; }).find("but holds") != std::string::npos);
}

TEST_CASE("a destination that does not take what is sent is named") {
  CHECK(violation([](World& w) { w.plan.steps[0].destinations[0].column = 2; }) ==
        "step 0 (trainer 0 sends w [0:144, 0:256]) goes to entry 2 of server 0, which holds norm");
  CHECK(violation([](World& w) { w.plan.steps[0].destinations[0].column = 1; }).find("which holds the scales of w") !=
        std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[0].destinations[0].server = 1; })
            .find("counts in the frame [0:256, 0:256], "
                  "but entry 0 of server 1") != std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[0].destinations[0].server = 7; }).find("there are 2 servers") !=
        std::string::npos);
  CHECK(violation([](World& w) {
          w.plan.steps[0].destinations[0].column = 3;
        }).find("names column 3, which does not exist") != std::string::npos);
  CHECK(violation([](World& w) {
          w.plan.steps[0].destinations[0].relay = 1;
        }).find("reaches server 0 through server 1, which has not received it before") != std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[0].destinations.clear(); }).find("to nobody") != std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[2].recipe = Recipe::fp16; }) ==
        "step 2 (trainer 0 sends norm [0:64]) as fp16, but entry 2 of server 0 holds bf16");
  CHECK(violation([](World& w) { w.plan.steps[1].frame.offset[0] = -1; }).find("counts in the frame") !=
        std::string::npos);
  CHECK(violation([](World& w) { w.plan.steps[0].signal = 1; }).find("signal 1") != std::string::npos);
  CHECK(violation([](World& w) { w.catalogs.servers[0].entries.edit()[2].shape = {128}; }).find("another shape") !=
        std::string::npos);
}

TEST_CASE("each scale is written once, by one who has all of its block") {
  CHECK(violation([](World& w) { w.plan.scale_steps.erase(w.plan.scale_steps.begin()); }) ==
        "[0:1, 0:2] of server 0's entry 1 (scales of w [0:2, 0:2]) is written by nobody");
  CHECK(violation([](World& w) {
          w.plan.scale_steps.push_back(w.plan.scale_steps[2]);
        }).find("[1:2, 1:2] of server 1's entry 1 is written twice: by scale step 2") == 0);
  CHECK(violation([](World& w) { w.plan.scale_steps[0].trainer = 1; }) ==
        "scale step 0 (trainer 1 sends the scales of blocks of w [0:1, 0:2]), but its entry 0 holds [144:256, 0:256]");
  CHECK(violation([](World& w) {
          w.plan.scale_steps[2].destinations[0].column = 0;
        }).find("which holds the values of w") != std::string::npos);
  CHECK(violation([](World& w) { w.plan.scale_steps[2].frame.extent[0] = 1; }).find("outside its frame") !=
        std::string::npos);
  CHECK(violation([](World& w) {
          w.catalogs.servers[1].entries.edit()[0].scales.reset();
        }).find("has no entry with the scales") != std::string::npos);
}

TEST_CASE("who casts a part of a block must be given the amax of the rest") {
  CHECK(violation([](World& w) { w.plan.amax.erase(w.plan.amax.begin()); }) ==
        "step 3 (trainer 1 sends w [144:256, 0:256]) needs the amax of [128:144, 0:256], which nobody sends its "
        "trainer");
  CHECK(violation([](World& w) {
          w.plan.amax[1].runs[0].blocks.extent[1] = 1;
        }).find("step 0 (trainer 0 sends w [0:144, 0:256]) needs the amax of [144:256, 128:256]") == 0);
  CHECK(violation([](World& w) { w.plan.steps[4].needs_amax = false; }).find("without waiting for the amax exchange") !=
        std::string::npos);
  CHECK(violation([](World& w) { w.plan.amax.push_back(w.plan.amax[0]); }) ==
        "two amax messages from trainer 0 to trainer 1");
  CHECK(violation([](World& w) { w.plan.amax[0].runs.push_back(w.plan.amax[0].runs[0]); }) ==
        "trainer 0 sends the amax of blocks [1:2, 0:2] of w twice to trainer 1");
  CHECK(violation([](World& w) { w.plan.amax[0].runs[0].from_column = 1; }).find("these are two tensors") !=
        std::string::npos);
  CHECK(violation([](World& w) {
          w.plan.amax[0].runs[0].from_column = 9;
        }).find("an amax exchange names column 9, which does not exist") != std::string::npos);
  CHECK(violation([](World& w) { w.plan.amax[1].runs[0].blocks.offset[0] = 0; }).find("not both have a part") !=
        std::string::npos);
}

TEST_CASE("the totals that people read are those of the steps") {
  CHECK(violation([](World& w) { w.plan.trainer_bytes[1] += 1; }) ==
        "trainer 1 sends 43020 bytes, but the plan's total says 43021");
  CHECK(violation([](World& w) { w.plan.server_bytes[0] = 0; }) ==
        "server 0 takes 65680 bytes, but the plan's total says 0");
  CHECK(violation([](World& w) { w.plan.server_bytes.pop_back(); }) == "totals for 1 servers, but there are 2");
  CHECK(violation([](World& w) { w.plan.server_loads[1].nic_out = 1; }) ==
        "the links of server 1 carry other bytes than it says");
}

TEST_CASE("parts of a block may overlap, when trainers hold the same rows") {
  auto w = world();
  w.catalogs.trainers[1].entries.edit()[0].box = {2, {128, 0}, {128, 256}};  // rows 128 to 144 are held twice
  CHECK(prove(w.plan, w.catalogs).waiting_steps == 2);
}

TEST_CASE("catalogs that cannot be true are refused before anything is counted") {
  CHECK(violation([](World& w) {
          w.catalogs.servers[0].regions[0].bytes = 131071;
        }).find("entry 2 of server 0 (norm) does not lie inside a region") == 0);
  CHECK(violation([](World& w) {
          w.catalogs.servers[0].entries.edit()[2].byte_offset = 512 * 255 + 255;
        }).find("entries 0 (w) and 2 (norm) of server 0 share bytes 130815 to 130816") == 0);
  CHECK(violation([](World& w) {
          w.catalogs.servers[0].entries.edit()[0].strides_bytes[0] = 128;
        }).find("does not lie") == std::string::npos);
  CHECK(violation([](World& w) { w.catalogs.servers[0].entries.edit()[0].strides_bytes[0] = 128; }).find("share") !=
        std::string::npos);
  CHECK(violation([](World& w) {
          w.catalogs.servers[1].entries.edit()[0].strides_bytes[0] = INT64_MAX;
        }).find("does not lie") != std::string::npos);
  CHECK(violation([](World& w) {
          w.catalogs.trainers[0].entries.edit()[0].box.offset[0] = 200;
        }).find("not inside its tensor") != std::string::npos);
  CHECK(violation([](World& w) { w.catalogs.trainers[1].rank = 0; }).find("is that of trainer 0") != std::string::npos);
}

TEST_CASE("values may lie in any axis order, as long as no two share a byte") {
  auto w = world();
  // Server 1 keeps w column-major: the same plan, other addresses.
  auto& right = w.catalogs.servers[1].entries.edit()[0];
  right.strides_bytes = {1, 256};
  const auto proof = prove(w.plan, w.catalogs);
  CHECK(proof.destination_bytes == 65536 + 128 + 16 + 32768 + 8);
  right.strides_bytes = {2, 256};
  CHECK_THROWS_AS(static_cast<void>(prove(w.plan, w.catalogs)), Error);
}

TEST_CASE("who passes bytes on has received them before") {
  auto w = world();
  Catalog twin = w.catalogs.servers[1];
  twin.rank = 2;
  w.catalogs.servers.push_back(twin);
  for (const std::size_t step : {1, 4}) w.plan.steps[step].destinations.push_back({2, 0, 1});
  for (const std::size_t step : {2, 3}) w.plan.scale_steps[step].destinations.push_back({2, 1, 1});
  w.plan.server_bytes.push_back(32776);
  Topology topology;
  topology.servers = {{0, 50, 400}, {1, 50, 400}, {1, 50, 400}};
  w.plan.server_loads.push_back({.nvlink_in = 32776});
  w.plan.server_loads[1].nvlink_out = 32776;
  CHECK(prove(w.plan, w.catalogs, topology).relayed_bytes == 32776);
  CHECK_THROWS_AS(static_cast<void>(prove(w.plan, w.catalogs)), Error);  // two nodes: the bytes go over the NICs

  const auto broken = [&](const auto& change) {
    auto changed = w;
    change(changed.plan.steps[1].destinations);
    CHECK_THROWS_WITH(static_cast<void>(prove(changed.plan, changed.catalogs, topology)),
                      doctest::Contains("which has not received it before"));
  };
  broken([](auto& destinations) { std::swap(destinations[0], destinations[1]); });
  broken([](auto& destinations) { destinations[1].relay = 2; });
  broken([](auto& destinations) { destinations[1].relay = 0; });
  broken([](auto& destinations) { destinations[1].relay = 9; });
}

#include "schedule/explain.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/small_world.h"

using namespace weightcast;

TEST_CASE("the routing table has a line for each pair, totals and the bound") {
  const auto w = world();
  CHECK(explain(w.plan, w.catalogs, {.trainer_out = 1, .server_in = 0.5, .host = 0}) ==
        R"(2 trainers to 2 servers in 2 replicas: 98.5 kB in 2 tensors

trainer  server  replica       bytes   tensors       puts
      0       0        0     37.0 kB         2        146
      0       1        1     18.4 kB         1          2
      1       0        0     28.7 kB         1        113
      1       1        1     14.3 kB         1          2
    all     all      all     98.5 kB         2        263

each trainer sends 43.0 kB (trainer 1) to 55.4 kB (trainer 0)
each server takes 32.8 kB (server 1) to 65.7 kB (server 0)
between trainers first: 2 messages of block maxima, 16 B
bound: no less than 0.13 ms, set by server 0 in, 65.7 kB
)");
}

TEST_CASE("a plan of many ranks and large models stays within 100 columns") {
  auto w = world();
  w.plan.server_bytes = {987'654'321'000, 12};
  w.plan.trainer_bytes = {1'234'567'890'123, 999'999'999};
  const auto text = explain(w.plan, w.catalogs, {});
  CHECK(text.find("each trainer sends 1.00 GB (trainer 1) to 1234.57 GB (trainer 0)\n") != std::string::npos);
  CHECK(text.find("bound: unknown, because no rate is given\n") != std::string::npos);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}

TEST_CASE("the bound is the slowest of the resources whose rate is known") {
  Plan plan;
  plan.trainer_bytes = {3'000'000'000, 1'000'000'000};
  plan.server_bytes = {1'500'000'000, 2'500'000'000};
  CHECK(lower_bound(plan, {}).seconds == 0);
  CHECK(lower_bound(plan, {}).binding.empty());
  const auto by_server = lower_bound(plan, {.trainer_out = 10, .server_in = 5, .host = 0});
  CHECK(by_server.seconds == doctest::Approx(0.5));
  CHECK(by_server.binding == "server 1 in, 2.50 GB");
  const auto by_trainer = lower_bound(plan, {.trainer_out = 2, .server_in = 5, .host = 0});
  CHECK(by_trainer.seconds == doctest::Approx(1.5));
  CHECK(by_trainer.binding == "trainer 0 out, 3.00 GB");
  const auto by_host = lower_bound(plan, {.trainer_out = 10, .server_in = 5, .host = 4});
  CHECK(by_host.seconds == doctest::Approx(1.0));
  CHECK(by_host.binding == "host, 4.00 GB");
}

TEST_CASE("each server may have a rate of its own") {
  Plan plan;
  plan.server_bytes = {1'000'000'000, 3'000'000'000};
  const auto bound = lower_bound(plan, {.server_in_each = {1, 6}});
  CHECK(bound.seconds == doctest::Approx(1.0));
  CHECK(bound.binding == "server 0 in, 1.00 GB");
}

TEST_CASE("ranks that look alike to a reader are one class, the largest first") {
  const auto classes = rank_classes({2'000'000'001, 5, 2'000'400'000, 2'000'600'000, 5});
  REQUIRE(classes.size() == 3);
  CHECK(classes[0].ranks == std::vector<std::uint32_t>{3});
  CHECK(classes[1].ranks == std::vector<std::uint32_t>{0, 2});
  CHECK(classes[1].least_bytes == 2'000'000'001);
  CHECK(classes[1].most_bytes == 2'000'400'000);
  CHECK(classes[2].ranks == std::vector<std::uint32_t>{1, 4});
}

TEST_CASE("the JSON says what the table says") {
  const auto w = world();
  const auto table = nlohmann::json::parse(explain_json(w.plan, w.catalogs, {.server_in = 0.5}));
  CHECK(table["pairs"].size() == 4);
  CHECK(table["pairs"][0] ==
        nlohmann::json{{"trainer", 0}, {"server", 0}, {"replica", 0}, {"bytes", 37000}, {"tensors", 2}, {"puts", 146}});
  CHECK(table["bytes"] == 98456);
  CHECK(table["puts"] == 263);
  CHECK(table["server_bytes"] == nlohmann::json{65680, 32776});
  CHECK(table["direct"] == nlohmann::json{{"trainer_bytes", table["trainer_bytes"]}, {"server_bytes", {65680, 32776}}});
  CHECK(table["bound"]["set_by"] == "server 0 in, 65.7 kB");
  CHECK(table["binding"] == "server 0 in, 65.7 kB");
  CHECK(table["bound_s"] == doctest::Approx(65680 / 0.5e9));
  const auto unbound = nlohmann::json::parse(explain_json(w.plan, w.catalogs, {}));
  for (const auto* key : {"bound", "bound_s", "binding"}) CHECK(unbound[key].is_null());
}

#include "schedule/explain.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/small_world.h"

using namespace weightcast;
using namespace weightcast::testing;

namespace {

// Every rank a node of its own.
Topology links(const std::vector<double>& trainer_gbs, const std::vector<double>& server_gbs, double host_gbs = 0) {
  Topology topology;
  std::uint32_t node = 0;
  for (const auto gbs : trainer_gbs) topology.trainers.push_back({node++, gbs, 0});
  for (const auto gbs : server_gbs) topology.servers.push_back({node++, gbs, 0});
  topology.host_gbs = host_gbs;
  return topology;
}

Bound bound_of(const Topology& topology, bool relay = false) {
  const auto catalogs = two_to_two();
  return lower_bound(match(catalogs), topology, relay);
}

std::string explained(const World& w, const Topology& topology) {
  return explain(w.plan, {w.catalogs, topology, bound_of(topology), w.plan.trainer_bytes, w.plan.server_bytes});
}

}  // namespace

TEST_CASE("the routing table has a line for each pair, totals and the bound") {
  CHECK(explained(world(), links({1, 1}, {0.5, 0.5})) ==
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
bound 0.131 ms (server 0 in, 65.68 kB), plan 0.131 ms, gap 0.0 %
)");
}

TEST_CASE("a plan of many ranks and large models stays within 100 columns") {
  auto w = world();
  w.plan.server_bytes = {987'654'321'000, 12};
  w.plan.trainer_bytes = {1'234'567'890'123, 999'999'999};
  const auto text = explained(w, {});
  CHECK(text.find("each trainer sends 1.00 GB (trainer 1) to 1234.57 GB (trainer 0)\n") != std::string::npos);
  CHECK(text.find("bound unknown, because no rate is given\n") != std::string::npos);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) CHECK(line.size() <= 100);
}

TEST_CASE("the bound is the slowest of the resources whose rate is known") {
  CHECK(bound_of({}).seconds == 0);
  CHECK(bound_of({}).binding.empty());
  const auto by_server = bound_of(links({10, 10}, {5, 1}));
  CHECK(by_server.seconds == doctest::Approx(32776 / 1e9));
  CHECK(by_server.binding == "server 1 in, 32.78 kB");
  const auto by_trainer = bound_of(links({10, 1}, {5, 5}));  // its values; who owns scales is the planner's choice
  CHECK(by_trainer.seconds == doctest::Approx(112 * (256 + 128) / 1e9));
  CHECK(by_trainer.binding == "trainer 1 out, 43.01 kB");
  const auto by_host = bound_of(links({10, 10}, {5, 5}, 4));
  CHECK(by_host.seconds == doctest::Approx(98456 / 4e9));
  CHECK(by_host.binding == "host, 98.46 kB");
}

TEST_CASE("with relay a node's NICs take each byte once, and each trainer sends it once") {
  auto topology = links({1, 1}, {0.5, 0.5});
  for (auto& server : topology.servers) server.node = 7, server.nvlink_gbs = 400;
  const auto bound = bound_of(topology, true);  // server 1's half of w is in server 0's whole, but another frame
  CHECK(bound.seconds == doctest::Approx((65680 - 32776) / 0.5e9));
  CHECK(bound.binding == "server NIC 0, 32.9 kB");  // what server 0 alone takes cannot come through server 1
  topology.servers[0].nic_gbs = 1;
  CHECK(bound_of(topology, true).seconds == doctest::Approx(65680 / 1.5e9));
  CHECK(bound_of(topology, true).binding == "NICs of servers 0-1, 65.68 kB, replicated tensors relayed");
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
  const auto json_of = [&](const Topology& topology) {
    return nlohmann::json::parse(
        explain_json(w.plan, {w.catalogs, topology, bound_of(topology), w.plan.trainer_bytes, w.plan.server_bytes}));
  };
  const auto table = json_of(links({0, 0}, {0.5, 0.5}));
  CHECK(table["pairs"].size() == 4);
  CHECK(table["pairs"][0] ==
        nlohmann::json{{"trainer", 0}, {"server", 0}, {"replica", 0}, {"bytes", 37000}, {"tensors", 2}, {"puts", 146}});
  CHECK(table["bytes"] == 98456);
  CHECK(table["puts"] == 263);
  CHECK(table["server_bytes"] == nlohmann::json{65680, 32776});
  CHECK(table["direct"] == nlohmann::json{{"trainer_bytes", table["trainer_bytes"]}, {"server_bytes", {65680, 32776}}});
  CHECK(table["bound"]["set_by"] == "server 0 in, 65.68 kB");
  CHECK(table["binding"] == "server 0 in, 65.68 kB");
  CHECK(table["bound_s"] == doctest::Approx(65680 / 0.5e9));
  CHECK(table["makespan_s"] == doctest::Approx(65680 / 0.5e9));
  CHECK(table["gap"] == doctest::Approx(0));
  const auto unbound = json_of({});
  for (const auto* key : {"bound", "bound_s", "binding", "makespan_s", "gap"}) CHECK(unbound[key].is_null());
}

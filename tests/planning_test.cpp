#include "plugin/planning.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/support/small_cluster.h"

using namespace weightcast;

namespace {

// Two trainers, two replicas of one server.
struct Controlled {
  MakePlan request(const std::vector<std::uint32_t>& servers) {
    MakePlan made{++generation, {}, {}};
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      made.catalogs.trainers.push_back(small_catalog(config, Role::trainer, rank));
      Catalog absent;
      absent.role = Role::server;
      absent.rank = rank;
      const bool is_there = std::count(servers.begin(), servers.end(), rank) != 0;
      made.catalogs.servers.push_back(is_there ? small_catalog(config, Role::server, rank) : absent);
    }
    return made;
  }
  Config config = small_config(2, 2, 1);
  Planning planning{config};
  std::uint64_t generation = 0;
};

}  // namespace

TEST_CASE("when servers leave and come back, the plan of all ranks is changed, and is as it was in the end") {
  Controlled controlled;
  const auto whole = controlled.planning.plan_for(controlled.request({0, 1}));
  CHECK(whole.second == "made");
  const auto without = controlled.planning.plan_for(controlled.request({0}));
  CHECK(without.second == "changed");
  CHECK(without.first.server_bytes[1] == 0);
  CHECK(without.first.server_bytes[0] == whole.first.server_bytes[0]);
  CHECK(controlled.planning.plan_for(controlled.request({0, 1})).first == whole.first);
}

TEST_CASE("what cannot be changed is planned anew: other entries, or links") {
  Controlled controlled;
  (void)controlled.planning.plan_for(controlled.request({0, 1}));
  auto other = controlled.request({0, 1});
  auto& moved = other.catalogs.servers[1];
  Entry entry = moved.entries.front();
  entry.byte_offset = 2;
  moved.entries = {};
  moved.entries.push_back(entry);
  moved.regions.front().bytes += 2;
  CHECK(controlled.planning.plan_for(other).second == "made");
  auto faster = controlled.request({0, 1});
  faster.topology.trainers = {{0, 1, 0}, {1, 2, 0}};
  faster.topology.servers = {{2, 1, 0}, {3, 1, 0}};
  CHECK(controlled.planning.plan_for(faster).second == "made");
}

TEST_CASE("an answer has a table for every rank, and says why there is none") {
  Controlled controlled;
  CHECK(controlled.planning.answer_to(controlled.request({0, 1})).tables.size() == 4);
  auto broken = controlled.request({0, 1});
  broken.catalogs.trainers[1] = {};
  broken.catalogs.trainers[1].rank = 1;
  const auto answer = controlled.planning.answer_to(broken);
  CHECK(answer.status.code() == Code::invalid_argument);
  CHECK(answer.status.message().find("weight") != std::string::npos);
}

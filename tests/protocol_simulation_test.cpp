#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/support/protocol_world.h"

using namespace weightcast;

namespace {

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::stoull(text);
}

// WEIGHTCAST_SEEDS: how many histories; WEIGHTCAST_SEED: only this one, told line by line.
void run_seeds(simulation::WorldOptions options, std::uint64_t usual) {
  const std::uint64_t only = number_from("WEIGHTCAST_SEED", 0);
  const std::uint64_t last = only != 0 ? only : number_from("WEIGHTCAST_SEEDS", usual);
  std::uint64_t commits = 0;
  std::uint64_t closed = 0;
  for (std::uint64_t seed = only != 0 ? only : 1; seed <= last; ++seed) {
    options.seed = seed;
    options.verbose = only != 0;
    simulation::World world(options);
    world.run();
    commits += world.commits();
    closed += world.fabrics_closed();
    for (const std::string& rule : world.broken()) FAIL_CHECK(rule);
    if (!world.broken().empty()) break;
  }
  CHECK(commits > 0);
  MESSAGE(last << " histories, " << commits << " commits, " << closed << " fabrics closed on late puts");
}

}  // namespace

TEST_CASE("undisturbed, every push is committed") {
  simulation::WorldOptions options;
  options.faults = false;
  run_seeds(options, 3);
}

TEST_CASE("two replicas of two ranks keep every rule whatever dies, stops or is slow") { run_seeds({}, 200); }

TEST_CASE("one replica of three ranks and three trainers do, too") {
  run_seeds({.trainers = 3, .replicas = 1, .servers_per_replica = 3}, 150);
}

TEST_CASE("a server that passes everything on to all others keeps every rule whatever dies, stops or is slow") {
  run_seeds({.trainers = 2, .replicas = 3, .servers_per_replica = 1, .relay = true}, 200);
}

TEST_CASE("so do ranks of one replica") {
  run_seeds({.trainers = 2, .replicas = 2, .servers_per_replica = 2, .relay = true}, 150);
}

TEST_CASE("in place, the host's leave comes before every put, and torn weights are repaired") {
  run_seeds({.trainers = 2, .replicas = 2, .servers_per_replica = 2, .in_place = true}, 100);
}

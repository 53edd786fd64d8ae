// Loads shared out over carriers, against the optimum of the linear program, found by looking at every set of loads: no
// way is faster than all bytes of a set over the rates of all who may carry some of it, and one way is as fast as the
// worst set (max-flow, min-cut).
#include "schedule/share.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

using namespace weightcast;

namespace {

using Random = std::mt19937;

std::size_t pick(Random& random, std::size_t least, std::size_t most) {
  return std::uniform_int_distribution<std::size_t>(least, most)(random);
}

struct Problem {
  std::vector<Load> loads;
  std::vector<double> rates;
};

Problem random_problem(Random& random) {
  Problem problem;
  const auto carriers = pick(random, 1, 6);
  constexpr double kRates[] = {12.5, 25, 50, 50, 100};
  for (std::size_t i = 0; i < carriers; ++i) problem.rates.push_back(kRates[pick(random, 0, 4)]);
  for (auto loads = pick(random, 1, 8); loads > 0; --loads) {
    Load load{pick(random, 0, 1) * pick(random, 1, 1'000'000'000) + pick(random, 0, 1000), {}};
    for (std::uint32_t carrier = 0; carrier < carriers; ++carrier) {
      if (pick(random, 0, 2) == 0) load.carriers.push_back(carrier);
    }
    if (load.carriers.empty()) load.carriers.push_back(static_cast<std::uint32_t>(pick(random, 0, carriers - 1)));
    problem.loads.push_back(std::move(load));
  }
  return problem;
}

double optimum(const Problem& problem) {
  double worst = 0;
  for (std::uint32_t set = 1; set < 1U << problem.loads.size(); ++set) {
    double bytes = 0;
    std::vector<bool> may_carry(problem.rates.size());
    for (std::size_t i = 0; i < problem.loads.size(); ++i) {
      if ((set >> i & 1U) == 0) continue;
      bytes += static_cast<double>(problem.loads[i].bytes);
      for (const auto carrier : problem.loads[i].carriers) may_carry[carrier] = true;
    }
    double rate = 0;
    for (std::size_t i = 0; i < problem.rates.size(); ++i) rate += may_carry[i] ? problem.rates[i] : 0;
    worst = std::max(worst, bytes / (rate * 1e9));
  }
  return worst;
}

// When each carrier is done.
std::vector<double> seconds_of(const Problem& problem, const Shares& shares) {
  std::vector<double> seconds(problem.rates.size());
  for (std::size_t i = 0; i < problem.loads.size(); ++i) {
    for (std::size_t j = 0; j < problem.loads[i].carriers.size(); ++j) {
      const auto carrier = problem.loads[i].carriers[j];
      seconds[carrier] += static_cast<double>(shares.bytes[i][j]) / (problem.rates[carrier] * 1e9);
    }
  }
  return seconds;
}

}  // namespace

TEST_CASE("every byte is carried, and the last carrier is done as early as the linear program says") {
  for (unsigned seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const auto problem = random_problem(random);
    const auto shares = share(problem.loads, problem.rates);
    REQUIRE(shares.bytes.size() == problem.loads.size());
    for (std::size_t i = 0; i < problem.loads.size(); ++i) {
      REQUIRE(shares.bytes[i].size() == problem.loads[i].carriers.size());
      std::uint64_t carried = 0;
      for (const auto bytes : shares.bytes[i]) carried += bytes;
      CHECK(carried == problem.loads[i].bytes);
    }
    const auto seconds = seconds_of(problem, shares);
    constexpr double kBytes = 8 / 12.5e9;  // a few bytes on the slowest carrier
    CHECK(*std::max_element(seconds.begin(), seconds.end()) <= optimum(problem) + kBytes);
    CHECK(shares.seconds == doctest::Approx(optimum(problem)).epsilon(1e-6));
  }
}

TEST_CASE("a load of no bytes holds nobody up") {
  const std::vector<Load> loads = {{159872, {0, 1, 2, 3}}, {0, {0}}, {98304, {2}}, {98304, {0, 1, 3}}};
  CHECK(share(loads, {10, 10, 10, 10}).seconds == doctest::Approx(98304 / 10e9).epsilon(1e-4));
}

TEST_CASE("nobody carries what one who is done earlier could carry") {
  for (unsigned seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const auto problem = random_problem(random);
    const auto shares = share(problem.loads, problem.rates);
    const auto seconds = seconds_of(problem, shares);
    for (std::size_t i = 0; i < problem.loads.size(); ++i) {
      const auto& carriers = problem.loads[i].carriers;
      double earliest = seconds[carriers.front()];
      for (const auto carrier : carriers) earliest = std::min(earliest, seconds[carrier]);
      for (std::size_t j = 0; j < carriers.size(); ++j) {
        const auto carried_s = static_cast<double>(shares.bytes[i][j]) / (problem.rates[carriers[j]] * 1e9);
        CHECK(std::min(carried_s, seconds[carriers[j]] - earliest) <= 1e-8);
      }
    }
  }
}

// What planning a scenario costs: planned, proved and bounded, each by itself and all on two cores; and how it grows
// when trainers and servers are there several times over (HSDP replicas, server replicas).
#include <fmt/format.h>
#include <sys/resource.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "schedule/bound.h"
#include "schedule/planner.h"
#include "schedule/proof.h"
#include "schedule/scenario.h"
#include "schedule/strict_json.h"
#include "transport/base/report_file.h"
#include "transport/base/units.h"

using namespace weightcast;

namespace {

using Json = nlohmann::ordered_json;

std::uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

// The scenario with so many times its trainers and servers.
Json repeated(Json scene, std::uint64_t times) {
  const auto multiply = [&](Json& at, const char* key) { at[key] = at.value(key, std::uint64_t{1}) * times; };
  auto& trainers = scene.at("trainers");
  multiply(trainers.at("layout"), "dp");
  auto& layout = trainers.at("layout");
  if (layout.contains("order") &&
      std::find(layout["order"].begin(), layout["order"].end(), "dp") == layout["order"].end()) {
    layout["order"].insert(layout["order"].begin(), "dp");
  }
  multiply(trainers.at("hardware"), "nodes");
  for (auto& pool : scene.at("servers")) {
    multiply(pool.at("layout"), "replicas");
    multiply(pool.at("hardware"), "nodes");
  }
  return scene;
}

template <class Work>
double seconds_of(const Work& work) {
  const auto start = Clock::now();
  work();
  return seconds_since(start);
}

Json measure(const Json& scene, const std::string& name, int rounds) {
  const auto scenario = parse_scenario(scene.dump(), name);
  const auto catalogs = catalogs_of(scenario);
  const auto topology = topology_of(scenario);
  const PlanOptions options{.relay = true};
  double plan_s = 0, prove_s = 0, bound_s = 0, all_s = 0;
  Plan plan;
  Bound bound;
  const auto least = [&](int round, double& best, double now) { best = round == 0 ? now : std::min(best, now); };
  for (int round = 0; round < rounds; ++round) {
    least(round, plan_s, seconds_of([&] { plan = make_plan(catalogs, topology, options); }));
    least(round, prove_s, seconds_of([&] { static_cast<void>(prove(plan, catalogs, topology)); }));
    least(round, bound_s, seconds_of([&] { bound = lower_bound(catalogs, topology, true); }));
    least(round, all_s, seconds_of([&] {
            const std::shared_future prover = std::async(std::launch::async, [&] { return Prover(catalogs); });
            auto bounding = std::async(std::launch::async, [&] {
              prover.wait();
              return lower_bound(catalogs, topology, true);
            });
            const auto made = make_plan(catalogs, topology, options);
            static_cast<void>(prover.get().prove(made, topology));
            bounding.get();
          }));
  }
  return {{"scenario", name},
          {"trainers", catalogs.trainers.size()},
          {"servers", catalogs.servers.size()},
          {"steps", plan.steps.size() + plan.scale_steps.size()},
          {"plan_s", plan_s},
          {"prove_s", prove_s},
          {"bound_s", bound_s},
          {"all_on_two_cores_s", all_s},
          {"gap", makespan_s(plan, topology) / bound.seconds - 1},
          {"peak_rss_bytes", peak_rss_bytes()}};
}

int run(int argc, char** argv) {
  std::vector<std::string> files;
  std::vector<std::uint64_t> times = {1};
  int rounds = 3;
  std::string json_file;
  CLI::App app("What planning scenarios costs, and how it grows");
  app.add_option("file", files, "scenarios")->required();
  app.add_option("--times", times, "so many times the trainers and servers; several numbers show the growth")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--rounds", rounds, "of each, the least counts")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  auto results = Json::array();
  fmt::print("{:<34} {:>13} {:>8} {:>8} {:>8} {:>8} {:>9} {:>8}\n", "", "ranks", "steps", "plan s", "prove s",
             "bound s", "2 cores s", "us/step");
  for (const auto& name : files) {
    const auto scene = Json::parse(read_text_file(name));
    for (const auto count : times) {
      const auto found = measure(repeated(scene, count), name, rounds);
      const auto steps = found["steps"].get<double>();
      fmt::print("{:<34} {:>13} {:>8} {:>8.3f} {:>8.3f} {:>8.3f} {:>9.3f} {:>8.1f}\n",
                 name.substr(name.rfind('/') + 1) + fmt::format(" x {}", count),
                 fmt::format("{} to {}", found["trainers"].get<int>(), found["servers"].get<int>()), steps,
                 found["plan_s"].get<double>(), found["prove_s"].get<double>(), found["bound_s"].get<double>(),
                 found["all_on_two_cores_s"].get<double>(), 1e6 * found["all_on_two_cores_s"].get<double>() / steps);
      results.push_back(found);
    }
  }
  fmt::print("peak memory {:.2f} GB\n", static_cast<double>(peak_rss_bytes()) / 1e9);
  file.keep(Json{{"bench", "plan"}, {"results", results}}.dump(1) + "\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "plan_bench: {}\n", error.what());
    return 1;
  }
}

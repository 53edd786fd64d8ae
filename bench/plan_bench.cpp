// What planning a scenario costs: planned, proved and bounded, each by itself on a core, and all on two; what a changed
// plan costs when ranks leave or join; and how these grow with the scenario.
#include <fmt/format.h>
#include <sys/resource.h>
#include <time.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "schedule/bound.h"
#include "schedule/planner.h"
#include "schedule/proof.h"
#include "schedule/replan.h"
#include "schedule/scenario.h"
#include "schedule/strict_json.h"
#include "schedule/what_if.h"
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

void multiply(Json& object, const char* key, std::uint64_t times) {
  object[key] = object.value(key, std::uint64_t{1}) * times;
}

void add_to_order(Json& layout, const char* axis) {
  if (!layout.contains("order")) return;
  auto& order = layout["order"];
  if (std::find(order.begin(), order.end(), axis) == order.end()) order.insert(order.begin(), axis);
}

// HSDP replicas of the trainers, replicas of the servers: more destinations.
void grow_replicas(Json& scene, std::uint64_t times) {
  auto& trainers = scene.at("trainers");
  multiply(trainers.at("layout"), "dp", times);
  add_to_order(trainers.at("layout"), "dp");
  multiply(trainers.at("hardware"), "nodes", times);
  for (auto& pool : scene.at("servers")) {
    multiply(pool.at("layout"), "replicas", times);
    multiply(pool.at("hardware"), "nodes", times);
  }
}

// Trainers that each hold so much less: more boxes, and so more steps.
void grow_shards(Json& scene, std::uint64_t times) {
  auto& trainers = scene.at("trainers");
  multiply(trainers.at("layout"), "fsdp", times);
  add_to_order(trainers.at("layout"), "fsdp");
  multiply(trainers.at("hardware"), "nodes", times);
}

// More tensors of each kind.
void grow_layers(Json& scene, std::uint64_t times) {
  multiply(scene.at("model"), "num_hidden_layers", times);
  const auto grow = [&](Json& layout) {
    if (!layout.contains("layers_per_stage")) return;
    for (auto& layers : layout["layers_per_stage"]) layers = layers.get<std::uint64_t>() * times;
  };
  grow(scene.at("trainers").at("layout"));
  for (auto& pool : scene.at("servers")) grow(pool.at("layout"));
}

void grow_experts(Json& scene, std::uint64_t times) {
  auto& model = scene.at("model");
  multiply(model, model.contains("n_routed_experts") ? "n_routed_experts" : "num_experts", times);
}

const std::map<std::string, void (*)(Json&, std::uint64_t)> kGrowths = {
    {"replicas", grow_replicas}, {"shards", grow_shards}, {"layers", grow_layers}, {"experts", grow_experts}};

// Of this thread on its core: other work on the machine does not count.
template <class Work>
double core_seconds_of(const Work& work) {
  const auto now = [] {
    timespec at{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
  };
  const double start = now();
  work();
  return now() - start;
}

template <class Work>
double seconds_of(const Work& work) {
  const auto start = Clock::now();
  work();
  return seconds_since(start);
}

// The entries of all ranks, those of a list that several ranks share counted once.
std::uint64_t distinct_entries(const Catalogs& catalogs) {
  std::set<const void*> lists;
  std::uint64_t entries = 0;
  for (const auto* side : {&catalogs.trainers, &catalogs.servers}) {
    for (const auto& catalog : *side) {
      if (lists.insert(catalog.entries.identity()).second) entries += catalog.entries.size();
    }
  }
  return entries;
}

std::uint64_t destinations_of(const Plan& plan) {
  std::uint64_t destinations = 0;
  for (const auto& step : plan.steps) destinations += step.destinations.size();
  for (const auto& step : plan.scale_steps) destinations += step.destinations.size();
  return destinations;
}

struct Cluster {
  Catalogs catalogs;
  Topology topology;
};

struct Rounds {
  int count = 1;

  // The least of the rounds: what disturbs only adds. `clock` is one of the two above.
  template <class Work>
  [[nodiscard]] double least(double (*clock)(const Work&), const Work& work) const {
    double best = clock(work);
    for (int round = 1; round < count; ++round) best = std::min(best, clock(work));
    return best;
  }
  template <class Work>
  [[nodiscard]] double core_s(const Work& work) const {
    return least(core_seconds_of<Work>, work);
  }
};

// As the controller does it: half of the proof, and the bound, need no plan and run beside planning.
void plan_on_two_cores(const Cluster& cluster, const PlanOptions& options) {
  const auto& [catalogs, topology] = cluster;
  const std::shared_future prover = std::async(std::launch::async, [&cluster] { return Prover(cluster.catalogs); });
  const auto matches = match(catalogs);
  auto bounding = std::async(std::launch::async, [&] {
    prover.wait();
    return lower_bound(matches, cluster.topology, options.relay);
  });
  const auto plan = make_plan(matches, topology, options);
  static_cast<void>(prover.get().prove(plan, topology));
  bounding.get();
}

// The time of a changed plan, its copy included; null where only a new plan helps.
Json replan_s(const Cluster& cluster, const Plan& plan, const Catalogs& before, const Catalogs& after,
              const Rounds& rounds) {
  try {
    return rounds.core_s([&] { static_cast<void>(replan(plan, before, after, cluster.topology)); });
  } catch (const Error&) {  // a lost trainer alone held what it sent
    return nullptr;
  }
}

Json measure_changes(const Cluster& cluster, const Plan& plan, const Rounds& rounds) {
  const auto without = [&](const std::string& rank) {
    auto catalogs = cluster.catalogs;
    drop_ranks({{}, {rank}, 0}, catalogs);
    return catalogs;
  };
  const auto& whole = cluster.catalogs;
  auto no_server = whole;
  no_server.servers.back().entries = {};
  no_server.servers.back().regions.clear();
  const auto no_replica = without("server:" + std::to_string(whole.servers.size() - 1));
  const auto plan_without = replan(plan, whole, no_replica, cluster.topology);
  return {{"server_leaves_s", replan_s(cluster, plan, whole, no_server, rounds)},
          {"replica_leaves_s", replan_s(cluster, plan, whole, no_replica, rounds)},
          {"replica_joins_s", replan_s(cluster, plan_without, no_replica, whole, rounds)},
          {"trainer_lost_s", replan_s(cluster, plan, whole, without("trainer:1"), rounds)}};
}

Json measure(const Json& scene, const std::string& name, const Rounds& rounds) {
  const auto scenario = parse_scenario(scene.dump(), name);
  const Cluster cluster{catalogs_of(scenario), topology_of(scenario)};
  const auto& [catalogs, topology] = cluster;
  const PlanOptions options{.relay = true};
  const auto plan = make_plan(catalogs, topology, options);
  const auto bound = lower_bound(match(catalogs), topology, options.relay);
  const auto plan_s = rounds.core_s([&] { static_cast<void>(make_plan(cluster.catalogs, cluster.topology, options)); });
  const auto prove_s = rounds.core_s([&] { static_cast<void>(prove(plan, cluster.catalogs, cluster.topology)); });
  const auto bound_s =
      rounds.core_s([&] { static_cast<void>(lower_bound(match(cluster.catalogs), cluster.topology, options.relay)); });
  const auto on_two_cores = [&] { plan_on_two_cores(cluster, options); };
  const auto all_s = rounds.least(seconds_of<decltype(on_two_cores)>, on_two_cores);
  Json found = {{"scenario", name},
                {"trainers", catalogs.trainers.size()},
                {"servers", catalogs.servers.size()},
                {"distinct_entries", distinct_entries(catalogs)},
                {"steps", plan.steps.size() + plan.scale_steps.size()},
                {"destinations", destinations_of(plan)},
                {"plan_s", plan_s},
                {"prove_s", prove_s},
                {"bound_s", bound_s},
                {"all_on_two_cores_s", all_s},
                {"gap", makespan_s(plan, topology) / bound.seconds - 1},
                {"peak_rss_bytes", peak_rss_bytes()}};
  found.update(measure_changes(cluster, plan, rounds));
  return found;
}

void print_row(const std::string& name, const Json& found) {
  const auto number = [&](const char* key) { return found.at(key).get<double>(); };
  const auto changed_ms = [&](const char* key) {
    return found.at(key).is_null() ? std::string("-") : fmt::format("{:.1f}", 1e3 * number(key));
  };
  fmt::print("{:<34} {:>13} {:>8} {:>7} {:>8} {:>7.3f} {:>7.3f} {:>7.3f} {:>9.3f} {:>8.1f} {:>15} {:>12}\n", name,
             fmt::format("{} to {}", number("trainers"), number("servers")), number("distinct_entries"),
             number("steps"), number("destinations"), number("plan_s"), number("prove_s"), number("bound_s"),
             number("all_on_two_cores_s"), 1e6 * (number("plan_s") + number("prove_s")) / number("steps"),
             fmt::format("{} / {}", changed_ms("replica_leaves_s"), changed_ms("replica_joins_s")),
             changed_ms("trainer_lost_s"));
  std::fflush(stdout);
}

int run(int argc, char** argv) {
  std::vector<std::string> files;
  std::vector<std::uint64_t> times = {1};
  std::vector<std::string> growths = {"replicas"};
  Rounds rounds{3};
  std::string json_file;
  CLI::App app("What planning scenarios costs, and how it grows");
  std::vector<std::string> known;
  for (const auto& [growth, grow] : kGrowths) known.push_back(growth);
  app.add_option("file", files, "scenarios")->required();
  app.add_option("--times", times, "so many times as large; several numbers show the growth")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--of", growths, "what there is more of")->check(CLI::IsMember(known))->capture_default_str();
  app.add_option("--rounds", rounds.count, "of each, the least counts")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--json", json_file, "also write the result there");
  CLI11_PARSE(app, argc, argv);
  ReportFile file(json_file);
  auto results = Json::array();
  fmt::print("{:<34} {:>13} {:>8} {:>7} {:>8} {:>7} {:>7} {:>7} {:>9} {:>8} {:>15} {:>12}\n", "", "ranks", "entries",
             "steps", "destin.", "plan s", "prove s", "bound s", "2 cores s", "us/step", "leave / join ms",
             "trainer ms");
  for (const auto& name : files) {
    for (const auto& growth : growths) {
      for (const auto count : times) {
        auto scene = Json::parse(read_text_file(name));
        kGrowths.at(growth)(scene, count);
        auto found = measure(scene, name, rounds);
        found["times"] = count;
        found["of"] = growth;
        print_row(name.substr(name.rfind('/') + 1) + fmt::format(" {} x {}", growth, count), found);
        results.push_back(std::move(found));
      }
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

#include "schedule/plan.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/explain.h"
#include "schedule/plan_changes.h"
#include "schedule/proof.h"
#include "schedule/server_tables.h"
#include "transport/base/units.h"

namespace weightcast::cli {
namespace {

std::uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

// Half of the proof, and the bound, need no plan: they are worked out on another core, where there is one.
struct Took {
  double all_s = 0;
  double planning_s = 0;
  double proving_s = 0;
  double bounding_s = 0;
};

// Of the tables that a controller hands out: the largest of a trainer and of a server.
struct TableSizes {
  std::size_t trainer_bytes = 0;
  std::size_t server_bytes = 0;
};

TableSizes table_sizes_of(const Plan& plan, const Catalogs& catalogs) {
  auto of_trainers = std::async(std::launch::async, [&] {
    std::size_t most = 0;
    for (const auto& of : catalogs.trainers)
      most = std::max(most, encode(trainer_table(plan, catalogs, of.rank)).size());
    return most;
  });
  TableSizes sizes;
  const ServerTables tables(plan, catalogs);
  for (const auto& of : catalogs.servers) {
    sizes.server_bytes = std::max(sizes.server_bytes, encode(tables.of(of.rank)).size());
  }
  sizes.trainer_bytes = of_trainers.get();
  return sizes;
}

// What making the plan cost, and what it is worth.
std::string summary_of(const Plan& plan, const Topology& topology, const Bound& bound, const Took& took,
                       const std::optional<TableSizes>& tables) {
  using Json = nlohmann::ordered_json;
  const auto gap = gap_of(plan, topology, bound);
  std::uint64_t tensors = 0;
  for (const auto& step : plan.steps) tensors += step.count;
  Json document = {{"plan_s", took.all_s},
                   {"planning_s", took.planning_s},
                   {"proving_s", took.proving_s},
                   {"bounding_s", took.bounding_s},
                   {"peak_rss_bytes", peak_rss_bytes()},
                   {"steps", plan.steps.size()},
                   {"scale_steps", plan.scale_steps.size()},
                   {"tensors_of_steps", tensors},
                   {"bound_s", gap ? Json(bound.seconds) : Json(nullptr)},
                   {"makespan_s", gap ? Json(makespan_s(plan, topology)) : Json(nullptr)},
                   {"gap", gap ? Json(*gap) : Json(nullptr)},
                   {"binding", gap ? Json(bound.binding) : Json(nullptr)}};
  if (tables) {
    document["table_bytes_max"] = std::max(tables->trainer_bytes, tables->server_bytes);
    document["trainer_table_bytes_max"] = tables->trainer_bytes;
    document["server_table_bytes_max"] = tables->server_bytes;
  }
  return document.dump(2) + "\n";
}

struct PlanOutput {
  bool json = false;
  bool steps = false;
  bool tables = false;
};

int run_plan(const Cluster& cluster, const PlanInput& input, const PlanOutput& output) {
  const auto& [catalogs, topology] = cluster;
  auto options = options_of(input);
  Took took;
  const auto start = Clock::now();
  const std::shared_future proving =
      std::async(std::launch::async, [&catalogs = catalogs] { return Prover(catalogs); });
  const auto matches = match(catalogs, options.unused_tensors);
  auto bounding = std::async(std::launch::async, [&, &topology = topology] {
    proving.wait();
    const auto begun = Clock::now();
    auto bound = lower_bound(matches, topology, options.relay);
    took.bounding_s = seconds_since(begun);
    return bound;
  });
  const auto plan = make_plan(matches, topology, options);
  took.planning_s = seconds_since(start);
  const auto proof = proving.get().prove(plan, topology);
  took.proving_s = seconds_since(start) - took.planning_s;
  const auto bound = bounding.get();
  took.all_s = seconds_since(start);
  if (output.steps) {
    print(to_json(plan, outline_of(plan, catalogs, topology, bound)));
    return kDone;
  }
  std::optional<TableSizes> tables;
  if (output.tables) tables = table_sizes_of(plan, catalogs);
  if (output.json) {
    print(summary_of(plan, topology, bound, took, tables));
    return kDone;
  }
  options.relay = false;
  const auto direct = make_plan(matches, topology, options);
  print(explain(plan, {catalogs, topology, bound, direct.trainer_bytes, direct.server_bytes}));
  print(
      fmt::format("proved: {} bytes, each written exactly once; {} scales; {} steps wait for maxima of other shards\n",
                  proof.destination_bytes, proof.scales, proof.waiting_steps));
  if (proof.relayed_bytes > 0) {
    print(fmt::format("        {} bytes are passed on, each by a server that has received it before\n",
                      proof.relayed_bytes));
  }
  if (tables) {
    print(fmt::format("tables of at most {} bytes for a trainer, {} for a server\n", tables->trainer_bytes,
                      tables->server_bytes));
  }
  return kDone;
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  struct Options {
    PlanInput input;
    PlanOutput output;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(
      app, "plan", "Plans an update from catalogs or a scenario, proves the plan and prints the routing table",
      "weightcast plan scenario.json\n"
      "  weightcast plan trainer0.json trainer1.json server0.json\n"
      "  weightcast plan --steps *.catalog.json >plan.json");
  add_plan_input(command, options->input);
  command.add_flag("--json", options->output.json, "print what planning took and the gap to the bound as JSON");
  command.add_flag("--steps", options->output.steps, "print the whole plan as JSON, every step");
  command.add_flag("--tables", options->output.tables, "also say what the largest table of a rank takes, encoded");
  command.callback([&action, options] {
    action = [options] {
      return with_cluster(options->input.files,
                          [&](const Cluster& cluster) { return run_plan(cluster, options->input, options->output); });
    };
  });
}

}  // namespace weightcast::cli

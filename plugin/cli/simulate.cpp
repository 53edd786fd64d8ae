#include "schedule/simulate.h"

#include <fmt/format.h>

#include <memory>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/simulate_text.h"
#include "schedule/strict_json.h"
#include "schedule/what_if.h"
#include "transport/base/report_file.h"

namespace weightcast::cli {
namespace {

struct SimulateOptions {
  PlanInput input;
  WhatIf changes;
  std::string trace;
  std::string measured;
  bool json = false;
};

Simulated simulated(const SimulateOptions& options, const std::string& text, const WhatIf& changes) {
  const auto& file = options.input.files.front();
  const auto scenario = parse_scenario(text, file, changes);
  auto catalogs = catalogs_of(scenario);
  drop_ranks(changes, catalogs);
  const auto topology = topology_of(scenario);
  const auto planning = options_of(options.input);
  Simulated found;
  found.trainers = catalogs.trainers.size();
  found.servers = catalogs.servers.size();
  try {
    const auto matches = match(catalogs, planning.unused_tensors);
    const auto plan = make_plan(matches, topology, planning);
    for (const auto bytes : plan.server_bytes) found.bytes += bytes;
    found.bound = lower_bound(matches, topology, planning.relay);
    found.result = simulate(plan, catalogs, topology, scenario.simulation);
  } catch (const Error& error) {
    throw in_file(error, scenario.origin);
  }
  return found;
}

int run_simulate(const SimulateOptions& options) {
  const auto& file = options.input.files.front();
  const auto text = read_text_file(file);
  if (!is_scenario(text)) {
    throw Error(Code::invalid_argument, fmt::format("{}: is no scenario: only these say how fast the links are", file));
  }
  const auto measured = options.measured.empty() ? std::string() : read_text_file(options.measured);
  ReportFile trace(options.trace);
  const auto after = simulated(options, text, options.changes);
  const auto trace_text = options.trace.empty() ? "" : to_trace(after.result, measured, options.measured);
  if (options.json) {
    print(to_json(after) + "\n");
  } else if (options.changes.empty()) {
    print(to_text(after));
  } else {
    print(to_text(simulated(options, text, {}), after));
  }
  trace.keep(trace_text);
  return kDone;
}

}  // namespace

void add_simulate(CLI::App& app, Action& action) {
  auto options = std::make_shared<SimulateOptions>();
  auto& command = add_command(app, "simulate", "Says how long an update would take, and what stands in its way",
                              "weightcast simulate scenario.json --trace trace.json\n"
                              "  weightcast simulate scenario.json --set server.nic_gbs=25 --drop trainer:17\n"
                              "  weightcast simulate --json scenario.json >simulation.json; weightcast-view gantt "
                              "simulation.json -o gantt.png");
  add_plan_input(command, options->input);
  command.get_option("file")->expected(1);
  add_changes(command, options->changes);
  auto* trace =
      command.add_option("--trace", options->trace, "write the simulated update for Perfetto")->type_name("FILE");
  command.add_option("--measured", options->measured, "a trace of a real run, to stand beside it in --trace")
      ->type_name("FILE")
      ->needs(trace);
  add_json(command, options->json);
  command.callback([&action, options] { action = [options] { return run_simulate(*options); }; });
}

}  // namespace weightcast::cli

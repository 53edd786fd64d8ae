#include <fmt/format.h>

#include <memory>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/plan_changes.h"
#include "schedule/strict_json.h"
#include "schedule/what_if.h"

namespace weightcast::cli {
namespace {

struct DiffOptions {
  std::string before;
  std::string after;
  WhatIf changes;
  bool without_relay = false;
  bool json = false;
};

PlannedCluster planned(const std::string& file, const WhatIf& changes, bool with_relay) {
  const auto text = read_text_file(file);
  if (!is_scenario(text)) throw Error(Code::invalid_argument, fmt::format("{}: is no scenario", file));
  const auto scenario = parse_scenario(text, file, changes);
  PlannedCluster cluster;
  cluster.catalogs = catalogs_of(scenario);
  drop_ranks(changes, cluster.catalogs);
  const auto topology = topology_of(scenario);
  const PlanOptions planning{.relay = with_relay};
  cluster.plan = make_plan(cluster.catalogs, topology, planning);
  cluster.bound = lower_bound(cluster.catalogs, topology, with_relay);
  return cluster;
}

int run_diff(const DiffOptions& options) {
  if (options.after.empty() && options.changes.empty()) {
    throw Error(Code::invalid_argument, "diff: give a second scenario, or changes by --set, --drop or --add-replica");
  }
  const auto before = planned(options.before, {}, !options.without_relay);
  const auto after =
      planned(options.after.empty() ? options.before : options.after, options.changes, !options.without_relay);
  const auto changes = changes_between(before, after);
  print(options.json ? to_json(changes, before, after) + "\n" : to_text(changes, before, after));
  return kDone;
}

}  // namespace

void add_diff(CLI::App& app, Action& action) {
  auto options = std::make_shared<DiffOptions>();
  auto& command = add_command(app, "diff", "Says what differs between the plans of two scenarios",
                              "weightcast diff old.json new.json\n"
                              "  weightcast diff scenario.json --drop trainer:17");
  command.add_option("old", options->before, "a scenario")->required();
  command.add_option("new", options->after, "another one; without it, the old one with the changes");
  add_changes(command, options->changes);
  add_no_relay(command, options->without_relay);
  add_json(command, options->json);
  command.callback([&action, options] { action = [options] { return run_diff(*options); }; });
}

}  // namespace weightcast::cli

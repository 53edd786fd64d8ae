#include <fmt/format.h>

#include <memory>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/plan_changes.h"
#include "schedule/planner.h"
#include "schedule/proof.h"
#include "schedule/replan.h"
#include "schedule/strict_json.h"
#include "schedule/units_text.h"
#include "schedule/what_if.h"
#include "transport/base/units.h"

namespace weightcast::cli {
namespace {

struct DiffOptions {
  std::string before;
  std::string after;
  WhatIf changes;
  bool without_relay = false;
  bool json = false;
};

struct Planned {
  Catalogs catalogs;
  Topology topology;
  Plan plan;
  Bound bound;
};

PlanOutline outline_of(const Planned& of) { return outline_of(of.plan, of.catalogs, of.topology, of.bound); }

// `with_plan`: else everything but the plan.
Planned cluster_of(const std::string& text, const std::string& file, const WhatIf& changes, bool relay,
                   bool with_plan) {
  const auto scenario = parse_scenario(text, file, changes);
  Planned cluster{catalogs_of(scenario), topology_of(scenario), {}, {}};
  drop_ranks(changes, cluster.catalogs);
  const auto matches = match(cluster.catalogs);
  cluster.bound = lower_bound(matches, cluster.topology, relay);
  if (with_plan) cluster.plan = make_plan(matches, cluster.topology, PlanOptions{.relay = relay});
  return cluster;
}

// A saved plan, or the plan of a scenario.
PlanOutline outline_of(const std::string& file, const WhatIf& changes, bool relay) {
  const auto text = read_text_file(file);
  if (is_saved_plan(text)) {
    if (changes.empty()) return parse_outline(text, file);
    throw Error(Code::invalid_argument, fmt::format("{}: is a saved plan; --set, --drop and --add-replica change "
                                                    "scenarios only",
                                                    file));
  }
  if (!is_scenario(text))
    throw Error(Code::invalid_argument, fmt::format("{}: is no scenario and no saved plan", file));
  try {
    return outline_of(cluster_of(text, file, changes, relay, true));
  } catch (const Error& error) {
    throw in_file(error, file);
  }
}

// Ranks that leave or join, and nothing else: the other steps stay.
int run_incremental(const DiffOptions& options, const std::string& text) {
  const bool relay = !options.without_relay;
  const auto before = cluster_of(text, options.before, {}, relay, true);
  auto after = before;
  if (options.changes.added_replicas > 0) {
    after = cluster_of(text, options.before, options.changes, relay, false);
  } else {
    drop_ranks(options.changes, after.catalogs);
  }
  const auto start = Clock::now();
  after.plan = replan(before.plan, before.catalogs, after.catalogs, after.topology);
  const double replan_s = seconds_since(start);
  if (options.changes.added_replicas == 0) after.bound = lower_bound(match(after.catalogs), after.topology, relay);
  static_cast<void>(prove(after.plan, after.catalogs, after.topology));
  const auto was = outline_of(before);
  const auto is = outline_of(after);
  const auto changes = changes_between(was, is);
  if (options.json) {
    print(to_json(changes, was, is) + "\n");
    return kDone;
  }
  print(to_text(changes, was, is));
  print(fmt::format("planned again in {}: only what the change concerns, not balanced anew\n", time_text(replan_s)));
  return kDone;
}

int run_diff(const DiffOptions& options) {
  if (options.after.empty() && options.changes.empty()) {
    throw Error(Code::invalid_argument, "diff: give a second file, or changes by --set, --drop or --add-replica");
  }
  const auto text = read_text_file(options.before);
  if (options.after.empty() && options.changes.settings.empty() && is_scenario(text)) {
    try {
      return run_incremental(options, text);
    } catch (const Error& error) {
      throw in_file(error, options.before);
    }
  }
  const auto before = outline_of(options.before, {}, !options.without_relay);
  const auto after =
      outline_of(options.after.empty() ? options.before : options.after, options.changes, !options.without_relay);
  const auto changes = changes_between(before, after);
  print(options.json ? to_json(changes, before, after) + "\n" : to_text(changes, before, after));
  return kDone;
}

}  // namespace

void add_diff(CLI::App& app, Action& action) {
  auto options = std::make_shared<DiffOptions>();
  auto& command = add_command(app, "diff", "Says what differs between two plans, saved or of scenarios",
                              "weightcast diff old.json new.json\n"
                              "  weightcast plan --steps scenario.json >plan.json; weightcast diff plan.json new.json\n"
                              "  weightcast diff scenario.json --drop trainer:17");
  command.add_option("old", options->before, "a scenario, or a plan of `plan --steps`")->required();
  command.add_option("new", options->after, "another one; without it, the old one with the changes");
  add_changes(command, options->changes);
  add_no_relay(command, options->without_relay);
  add_json(command, options->json);
  command.callback([&action, options] { action = [options] { return run_diff(*options); }; });
}

}  // namespace weightcast::cli

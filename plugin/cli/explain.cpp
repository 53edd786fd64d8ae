#include "schedule/explain.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <map>
#include <memory>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"

namespace weightcast::cli {
namespace {

std::string servers_of(const std::vector<Destination>& destinations) {
  std::vector<std::uint32_t> servers;
  servers.reserve(destinations.size());
  for (const auto& to : destinations) servers.push_back(to.server);
  return fmt::format("server{} {}", servers.size() == 1 ? "" : "s", fmt::join(servers, ", "));
}

// Who sends which part of the tensors that match to whom.
std::string steps_of(const Plan& plan, const Catalogs& catalogs, const std::string& pattern) {
  std::map<std::string, std::string> lines;  // by tensor
  const auto for_each_match = [&](const auto& step, const auto& line) {
    for (auto i = step.first; i < step.first + step.count; ++i) {
      const auto& name = catalogs.trainers[step.trainer].entries[plan.columns[step.column][i]].tensor;
      if (fnmatch(pattern.c_str(), name.str().c_str(), 0) == 0) lines[name] += line();
    }
  };
  for (const auto& step : plan.steps) {
    for_each_match(step, [&] {
      return fmt::format("  trainer {} sends {} as {} to {}{}\n", step.trainer, to_string(step.box),
                         to_string(step.recipe), servers_of(step.destinations),
                         step.needs_amax ? ", after the exchange of block maxima" : "");
    });
  }
  for (const auto& step : plan.scale_steps) {
    for_each_match(step, [&] {
      return fmt::format("  trainer {} sends the scales of blocks {} to {}\n", step.trainer, to_string(step.blocks),
                         servers_of(step.destinations));
    });
  }
  if (lines.empty()) throw Error(Code::invalid_argument, fmt::format("no tensor of the plan matches {}", pattern));
  std::string text;
  for (const auto& [tensor, steps] : lines) text += fmt::format("{}\n{}", tensor, steps);
  return text;
}

struct ExplainOptions {
  PlanInput input;
  GivenRates rates;
  std::string tensor;
  bool json = false;
};

int run_explain(const Cluster& cluster, const ExplainOptions& options) {
  const auto& catalogs = cluster.catalogs;
  const auto topology = overridden(cluster.topology, catalogs, options.rates);
  auto planning = options_of(options.input);
  const auto matches = match(catalogs, planning.unused_tensors);
  const auto plan = make_plan(matches, topology, planning);
  if (!options.tensor.empty()) {
    print(steps_of(plan, catalogs, options.tensor));
    return kDone;
  }
  const auto bound = lower_bound(matches, topology, planning.relay);
  planning.relay = false;
  const auto direct = make_plan(matches, topology, planning);
  const Context context{catalogs, topology, bound, direct.trainer_bytes, direct.server_bytes};
  print(options.json ? explain_json(plan, context) + "\n" : explain(plan, context));
  return kDone;
}

}  // namespace

void add_explain(CLI::App& app, Action& action) {
  auto options = std::make_shared<ExplainOptions>();
  auto& command = add_command(app, "explain", "Says who sends what to whom, and how fast it could be at best",
                              "weightcast explain scenario.json\n"
                              "  weightcast explain --server-gbs 50 --trainer-gbs 50 *.catalog.json\n"
                              "  weightcast explain --tensor 'model.layers.0.*' *.catalog.json");
  add_plan_input(command, options->input);
  add_rates(command, options->rates);
  auto* tensor =
      command.add_option("--tensor", options->tensor, "list the steps of tensors; * stands for any characters");
  command.add_flag("--json", options->json, "print the routing table as JSON")->excludes(tensor);
  command.callback([&action, options] {
    action = [options] {
      return with_cluster(options->input.files, [&](const Cluster& cluster) { return run_explain(cluster, *options); });
    };
  });
}

}  // namespace weightcast::cli

#include "schedule/bound.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/units_text.h"

namespace weightcast::cli {
namespace {

struct BoundOptions {
  PlanInput input;
  GivenRates rates;
  bool json = false;
};

using Json = nlohmann::ordered_json;

Json json_of_bound(const Bound& bound) {
  if (bound.seconds <= 0) return nullptr;
  return {{"bound_s", bound.seconds}, {"binding", bound.binding}};
}

std::string line_of_bound(const char* kind, const Bound& bound) {
  if (bound.seconds <= 0) return fmt::format("{:<14}unknown, because no rate is given\n", kind);
  return fmt::format("{:<14}{:>10}  {}\n", kind, time_text(bound.seconds), bound.binding);
}

int run_bound(const Cluster& cluster, const BoundOptions& options) {
  const auto& catalogs = cluster.catalogs;
  const auto topology = overridden(cluster.topology, catalogs, options.rates);
  const auto matches = match(catalogs, options_of(options.input).unused_tensors);
  const auto relayed = lower_bound(matches, topology, true);
  const auto direct = lower_bound(matches, topology, false);
  if (!options.json) {
    print(line_of_bound("with relay", relayed) + line_of_bound("without relay", direct));
    return kDone;
  }
  const auto& asked = options.input.without_relay ? direct : relayed;
  const bool is_known = asked.seconds > 0;
  const Json document = {{"bound_s", is_known ? Json(asked.seconds) : Json(nullptr)},
                         {"binding", is_known ? Json(asked.binding) : Json(nullptr)},
                         {"with_relay", json_of_bound(relayed)},
                         {"without_relay", json_of_bound(direct)}};
  print(document.dump(2) + "\n");
  return kDone;
}

}  // namespace

void add_bound(CLI::App& app, Action& action) {
  auto options = std::make_shared<BoundOptions>();
  auto& command = add_command(app, "bound", "Says how fast an update could be at best, whatever the plan, and why",
                              "weightcast bound scenario.json\n"
                              "  weightcast bound --server-gbs 50 --trainer-gbs 50 *.catalog.json");
  add_plan_input(command, options->input);
  add_rates(command, options->rates);
  add_json(command, options->json);
  command.callback([&action, options] {
    action = [options] {
      return with_cluster(options->input.files, [&](const Cluster& cluster) { return run_bound(cluster, *options); });
    };
  });
}

}  // namespace weightcast::cli

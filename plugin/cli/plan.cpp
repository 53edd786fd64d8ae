#include "schedule/plan.h"

#include <fmt/format.h>

#include <memory>

#include "plugin/cli/catalogs.h"
#include "plugin/cli/command.h"
#include "schedule/explain.h"
#include "schedule/proof.h"

namespace weightcast::cli {

void add_plan(CLI::App& app, Action& action) {
  struct Options {
    PlanInput input;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto& command = add_command(
      app, "plan", "Plans an update from catalogs or a scenario, proves the plan and prints the routing table",
      "weightcast plan scenario.json\n"
      "  weightcast plan trainer0.json trainer1.json server0.json\n"
      "  weightcast plan --json *.catalog.json >plan.json");
  add_plan_input(command, options->input);
  command.add_flag("--json", options->json, "print the whole plan as JSON, every step");
  command.callback([&action, options] {
    action = [options] {
      const auto [catalogs, rates] = load_cluster(options->input.files);
      const auto plan = plan_of(options->input, catalogs);
      const auto proof = prove(plan, catalogs);
      if (options->json) {
        print(to_json(plan) + "\n");
      } else {
        print(explain(plan, catalogs, rates));
        print(fmt::format(
            "proved: {} bytes in {} runs, each written exactly once; {} scales; {} blocks straddle shards\n",
            proof.destination_bytes, proof.put_extents, proof.scales, proof.straddling_blocks));
      }
      return kDone;
    };
  });
}

}  // namespace weightcast::cli

// Catalog files, or one scenario, on the command line: what `plan` and `explain` start from.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "schedule/explain.h"
#include "schedule/plan.h"
#include "schedule/what_if.h"

namespace weightcast::cli {

struct PlanInput {
  std::vector<std::string> files;
  std::string config_file;
  std::vector<std::string> unused_tensors;
};
void add_plan_input(CLI::App& command, PlanInput& input);

// --set, --drop, --add-replica.
void add_changes(CLI::App& command, WhatIf& changes);

struct Cluster {
  Catalogs catalogs;
  LinkRates rates;  // a scenario's; catalogs know none
};
// A scenario alone, or one catalog a file, in any order; each role's ranks without gaps or repetition. Throws
// Error{invalid_argument}.
[[nodiscard]] Cluster load_cluster(const std::vector<std::string>& files);
// Plans; throws Error when the planner refuses.
[[nodiscard]] Plan plan_of(const PlanInput& input, const Catalogs& catalogs);

}  // namespace weightcast::cli

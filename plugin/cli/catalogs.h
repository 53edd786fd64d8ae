// Catalog files, or one scenario, on the command line: what `plan`, `explain` and `bound` start from.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "schedule/plan.h"
#include "schedule/planner.h"
#include "schedule/topology.h"
#include "schedule/what_if.h"

namespace weightcast::cli {

struct PlanInput {
  std::vector<std::string> files;
  std::string config_file;
  std::vector<std::string> unused_tensors;
  bool without_relay = false;
};
void add_plan_input(CLI::App& command, PlanInput& input);

void add_no_relay(CLI::App& command, bool& without_relay);

// Rates in GB/s that the command line gives; 0: not given.
struct GivenRates {
  double trainer_out = 0;
  double server_in = 0;
  double host = 0;
};
// --trainer-gbs, --server-gbs, --host-gbs.
void add_rates(CLI::App& command, GivenRates& rates);
// The links of a scenario, unless the command line gives others. Ranks of catalogs are nodes of their own.
[[nodiscard]] Topology overridden(Topology topology, const Catalogs& catalogs, const GivenRates& given);

// --set, --drop, --add-replica.
void add_changes(CLI::App& command, WhatIf& changes);

struct Cluster {
  Catalogs catalogs;
  Topology topology;  // a scenario's; catalogs know none
};
// A scenario alone, or one catalog a file, in any order; each role's ranks without gaps or repetition. Throws
// Error{invalid_argument}.
[[nodiscard]] Cluster load_cluster(const std::vector<std::string>& files);
// What the configuration file and the flags say, with relay unless they say no.
[[nodiscard]] PlanOptions options_of(const PlanInput& input);

}  // namespace weightcast::cli

// Catalog files, or one scenario, on the command line: what `plan`, `explain` and `bound` start from.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "schedule/plan.h"
#include "schedule/planner.h"
#include "schedule/topology.h"
#include "schedule/what_if.h"
#include "transport/base/status.h"

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
// Runs `work` on a scenario alone, or on one catalog a file, in any order; each role's ranks without gaps or
// repetition. Throws Error{invalid_argument}. What `work` throws is given the names of the files of the ranks that it
// names.
int with_cluster(const std::vector<std::string>& files, const std::function<int(const Cluster&)>& work);
// The error, with the file in front unless it is there.
[[nodiscard]] Error in_file(const Error& error, const std::string& file);
// What the configuration file and the flags say, with relay unless they say no.
[[nodiscard]] PlanOptions options_of(const PlanInput& input);

}  // namespace weightcast::cli

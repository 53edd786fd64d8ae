#include "plugin/cli/catalogs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <regex>
#include <tuple>
#include <utility>

#include "schedule/config.h"
#include "schedule/planner.h"
#include "schedule/scenario.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast::cli {

void add_plan_input(CLI::App& command, PlanInput& input) {
  command.add_option("file", input.files, "one scenario, or catalogs: one for each trainer and each server")
      ->required();
  command.add_option("--config", input.config_file,
                     "configuration file: chunk_bytes, scratch_bytes and unused_tensors count here");
  command.add_option("--unused", input.unused_tensors, "a tensor that no server takes; * stands for any characters")
      ->allow_extra_args(false);  // one each, so that catalogs may follow
  add_no_relay(command, input.without_relay);
}

void add_no_relay(CLI::App& command, bool& without_relay) {
  command.add_flag("--no-relay", without_relay, "every server gets everything from trainers");
}

void add_rates(CLI::App& command, GivenRates& rates) {
  const auto rate = [&](const char* flag, double& value, const char* what) {
    const auto is_positive = [](const std::string& text) {
      const double given = std::strtod(text.c_str(), nullptr);
      return given > 0 ? std::string() : fmt::format("{} is not above 0", text);
    };
    command.add_option(flag, value, what)->check(CLI::Validator(is_positive, ""))->type_name("GB/s");
  };
  rate("--trainer-gbs", rates.trainer_out, "rate out of each trainer");
  rate("--server-gbs", rates.server_in, "rate into each server");
  rate("--host-gbs", rates.host, "rate of the one host that all ranks share");
}

Topology overridden(Topology topology, const Catalogs& catalogs, const GivenRates& given) {
  std::uint32_t node = 0;
  for (auto [links, ranks, gbs] : {std::tuple{&topology.trainers, catalogs.trainers.size(), given.trainer_out},
                                   {&topology.servers, catalogs.servers.size(), given.server_in}}) {
    while (links->size() < ranks) links->push_back({node++, 0, 0});
    for (auto& link : *links) {
      if (gbs > 0) link.nic_gbs = gbs;
    }
  }
  if (given.host > 0) topology.host_gbs = given.host;
  return topology;
}

void add_changes(CLI::App& command, WhatIf& changes) {
  const auto several = [&](const char* flag, std::vector<std::string>& values, const char* what, const char* type) {
    command.add_option(flag, values, what)->allow_extra_args(false)->type_name(type);
  };
  several("--set", changes.settings,
          "change the scenario: server.KEY and trainer.KEY of layout and hardware, simulation.KEY, model.KEY, recipe",
          "KEY=VALUE");
  several("--drop", changes.dropped, "trainer:RANK holds nothing; server:RANK leaves with its replica", "ROLE:RANK");
  command.add_option("--add-replica", changes.added_replicas, "so many more replicas in the first pool")
      ->check(CLI::Range(1U, 1U << 14))
      ->type_name("COUNT");
}

namespace {

struct File {
  std::string name;
  std::string text;
};

using RankFiles = std::map<std::string, std::string>;  // by "trainer 3"

Catalogs parse_catalogs(const std::vector<File>& files, RankFiles& file_of) {
  std::map<std::uint32_t, std::pair<Catalog, std::string>> trainers;
  std::map<std::uint32_t, std::pair<Catalog, std::string>> servers;
  for (const auto& [file, text] : files) {
    auto catalog = parse_catalog(text, file);
    auto& role = catalog.role == Role::trainer ? trainers : servers;
    file_of[fmt::format("{} {}", to_string(catalog.role), catalog.rank)] = file;
    const auto [at, is_new] = role.try_emplace(catalog.rank, catalog, file);
    if (!is_new) {
      throw Error(Code::invalid_argument,
                  fmt::format("{} and {} are both of {}", at->second.second, file, name_of(catalog)));
    }
  }
  Catalogs catalogs;
  for (auto [from, to, name] :
       {std::tuple{&trainers, &catalogs.trainers, "trainer"}, {&servers, &catalogs.servers, "server"}}) {
    for (auto& [rank, catalog] : *from) {
      if (rank != to->size()) {
        throw Error(Code::invalid_argument,
                    fmt::format("the catalog of {} {} is missing: ranks count from 0 without gaps; give its file too",
                                name, to->size()));
      }
      to->push_back(std::move(catalog.first));
    }
    if (to->empty()) throw Error(Code::invalid_argument, fmt::format("no catalog is of a {}", name));
  }
  return catalogs;
}

// The files of the ranks that the error names, behind it.
Error with_files(const Error& error, const RankFiles& file_of) {
  const std::string text = error.what();
  static const std::regex rank("(trainer|server) [0-9]+");
  std::vector<std::string> named;
  for (auto found = std::sregex_iterator(text.begin(), text.end(), rank); found != std::sregex_iterator(); ++found) {
    const auto file = file_of.find(found->str());
    if (file == file_of.end()) continue;
    auto words = fmt::format("{} is {}", file->first, file->second);
    if (std::find(named.begin(), named.end(), words) == named.end()) named.push_back(std::move(words));
  }
  return {error.code(), named.empty() ? text : fmt::format("{} ({})", text, fmt::join(named, ", "))};
}

}  // namespace

Error in_file(const Error& error, const std::string& file) {
  const std::string_view text = error.what();
  return {error.code(), text.starts_with(file) ? std::string(text) : fmt::format("{}: {}", file, text)};
}

int with_cluster(const std::vector<std::string>& names, const std::function<int(const Cluster&)>& work) {
  std::vector<File> files;
  files.reserve(names.size());
  for (const auto& name : names) files.push_back({name, read_text_file(name)});
  const auto scenario = std::find_if(files.begin(), files.end(), [](const File& f) { return is_scenario(f.text); });
  if (scenario != files.end() && files.size() > 1) {
    throw Error(Code::invalid_argument,
                fmt::format("{} is a scenario: it makes all catalogs, give no other file", scenario->name));
  }
  RankFiles file_of;
  try {
    if (scenario == files.end()) return work({parse_catalogs(files, file_of), {}});
    const auto parsed = parse_scenario(scenario->text, scenario->name);
    return work({catalogs_of(parsed), topology_of(parsed)});
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) throw;
    throw scenario == files.end() ? with_files(error, file_of) : in_file(error, scenario->name);
  }
}

PlanOptions options_of(const PlanInput& input) {
  const auto config = input.config_file.empty() ? Config{} : load_config(input.config_file);
  PlanOptions options;
  options.chunk_bytes = config.performance.chunk_bytes;
  options.scratch_bytes = config.performance.scratch_bytes;
  options.unused_tensors = config.unused_tensors;
  options.unused_tensors.insert(options.unused_tensors.end(), input.unused_tensors.begin(), input.unused_tensors.end());
  options.relay = !input.without_relay;
  return options;
}

}  // namespace weightcast::cli

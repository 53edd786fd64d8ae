#include "schedule/what_if.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "schedule/refuse.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;

using Keys = std::vector<std::string_view>;

const Keys kHardware = {"nodes", "gpus_per_node", "nics_per_gpu", "nic_gbs", "nvlink_gbs"};
const Keys kTrainers = {"pp", "dp", "fsdp", "cp", "ep", "tp", "layers_per_stage", "order", "shard_over_ep"};
const Keys kServers = {"replicas", "pp", "dp", "tp", "ep", "attention", "layers_per_stage"};

bool has(const Keys& keys, std::string_view key) { return std::find(keys.begin(), keys.end(), key) != keys.end(); }

Json& part_of(Json& document, std::string_view key) { return document[std::string(key)]; }

void set_of_side(Json& side, const Keys& layout, std::string key, Json value, const std::string& setting) {
  if (key == "nic_gbps") {
    constexpr double kBits = 8;
    if (!value.is_number()) refuse(fmt::format("--set {}: must be a number of Gbit/s", setting));
    key = "nic_gbs";
    value = value.get<double>() / kBits;
  }
  if (!has(layout, key) && !has(kHardware, key)) {
    auto known = layout;
    known.insert(known.end(), kHardware.begin(), kHardware.end());
    refuse(fmt::format("--set {}: unknown key \"{}\"; the nearest known one is \"{}\"", setting, key,
                       nearest(key, known)));
  }
  part_of(part_of(side, has(layout, key) ? "layout" : "hardware"), key) = std::move(value);
}

void set(Json& document, const std::string& setting) {
  const auto equals = setting.find('=');
  const auto path = setting.substr(0, equals);
  if (equals == std::string::npos || path.empty()) refuse(fmt::format("--set {}: must be KEY=VALUE", setting));
  const auto text = setting.substr(equals + 1);
  auto value = Json::parse(text, nullptr, false);
  if (value.is_discarded()) value = text;
  const auto dot = path.find('.');
  const auto part = path.substr(0, dot);
  if (dot == std::string::npos) {
    if (part != "recipe")
      refuse(fmt::format("--set {}: \"{}\" is no key; did you mean {}.{}?", setting, part, "server", part));
    document["recipe"] = std::move(value);
    return;
  }
  const auto key = path.substr(dot + 1);
  if (part == "trainer" || part == "trainers") {
    return set_of_side(document["trainers"], kTrainers, key, std::move(value), setting);
  }
  if (part == "server" || part == "servers") {
    for (auto& pool : document["servers"]) set_of_side(pool, kServers, key, value, setting);
    return;
  }
  if (part != "simulation" && part != "model") {
    refuse(fmt::format("--set {}: \"{}\" is no part of a scenario; the nearest is \"{}\"", setting, part,
                       nearest(part, {"trainer", "server", "simulation", "model"})));
  }
  document[part][key] = std::move(value);
}

void add_replicas(Json& document, std::uint32_t added) {
  auto& pool = document.at("servers").at(0);
  auto& replicas = pool.at("layout")["replicas"];
  const std::uint64_t before = replicas.is_null() ? 1 : replicas.get<std::uint64_t>();
  const auto after = before + added;
  auto& nodes = pool.at("hardware").at("nodes");
  auto& gpus = pool.at("hardware").at("gpus_per_node");
  replicas = after;
  const auto wanted = nodes.get<std::uint64_t>() * after;
  if (wanted % before == 0) {
    nodes = wanted / before;
  } else {  // several replicas to a node
    gpus = gpus.get<std::uint64_t>() * nodes.get<std::uint64_t>() * after / before;
    nodes = 1;
  }
}

struct Named {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
};

Named named(const std::string& text, const Catalogs& catalogs) {
  const auto colon = text.find(':');
  const auto role = text.substr(0, colon);
  Named found;
  found.role = role == "server" ? Role::server : Role::trainer;
  const auto* end = text.data() + text.size();
  const auto read = colon == std::string::npos ? std::from_chars_result{end, std::errc::invalid_argument}
                                               : std::from_chars(text.data() + colon + 1, end, found.rank);
  if ((role != "trainer" && role != "server") || read.ec != std::errc{} || read.ptr != end) {
    refuse(fmt::format("--drop {}: must be trainer:RANK or server:RANK", text));
  }
  const auto ranks = found.role == Role::trainer ? catalogs.trainers.size() : catalogs.servers.size();
  if (found.rank >= ranks) refuse(fmt::format("--drop {}: there are {} {}s, counted from 0", text, ranks, role));
  return found;
}

void empty(Catalog& catalog) {
  catalog.entries = {};
  catalog.regions.clear();
}

}  // namespace

Scenario parse_scenario(std::string_view json_text, const std::string& origin, const WhatIf& changes) {
  if (changes.empty()) return parse_scenario(json_text, origin);
  static_cast<void>(parse_scenario(json_text, origin));  // what is wrong without the changes is said of the file alone
  auto document = parse_strict_json(json_text, origin);
  for (const auto& setting : changes.settings) set(document, setting);
  if (changes.added_replicas > 0) add_replicas(document, changes.added_replicas);
  // What is not UTF-8 on the command line is shown, and refused, as replaced.
  const auto changed = document.dump(-1, ' ', false, Json::error_handler_t::replace);
  return parse_scenario(changed, origin + " with the changes");
}

void drop_ranks(const WhatIf& changes, Catalogs& catalogs) {
  for (const auto& text : changes.dropped) {
    const auto dropped = named(text, catalogs);
    if (dropped.role == Role::trainer) {
      empty(catalogs.trainers[dropped.rank]);
      continue;
    }
    const auto replica = catalogs.servers[dropped.rank].replica;
    for (auto& server : catalogs.servers) {
      if (server.replica == replica) empty(server);
    }
  }
}

}  // namespace weightcast

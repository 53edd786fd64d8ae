#include "schedule/simulation_json.h"

#include <fmt/format.h>

#include <utility>

#include "schedule/place.h"

namespace weightcast {
namespace {

constexpr double kMost = 1e6;  // far above any rate, time or factor

double number_or(const Place& place, std::string_view key, double otherwise, double least = 0, double most = kMost) {
  return place.has(key) ? place.at(key).number(least, most) : otherwise;
}

std::vector<Straggler> read_stragglers(const Place& place) {
  constexpr std::size_t kMostStragglers = 1 << 10;
  std::vector<Straggler> stragglers(place.size_of_array(kMostStragglers));
  for (std::size_t i = 0; i < stragglers.size(); ++i) {
    const auto one = place.at(i);
    one.require_keys({"trainer", "server", "factor"});
    if (one.has("trainer") == one.has("server")) one.fail(R"(must have either "trainer" or "server", with its rank)");
    auto& straggler = stragglers[i];
    straggler.role = one.has("trainer") ? Role::trainer : Role::server;
    straggler.rank = static_cast<std::uint32_t>(one.at(to_string(straggler.role)).integer(0, UINT32_MAX));
    straggler.factor = one.at("factor").number(1, kMost);
  }
  return stragglers;
}

GatherBehaviour read_gather(const Place& place) {
  place.require_keys({"thread_ms", "expert_part"});
  GatherBehaviour gather;
  const auto times = place.at("thread_ms");
  if (!times.value().is_object()) times.fail("must be an object: a time for each of the thread's tasks");
  for (const auto& item : times.value().items()) gather.thread_ms += times.at(item.key()).number(0, kMost);
  gather.expert_part = place.at("expert_part").text(1024);
  return gather;
}

}  // namespace

SimulationOptions read_simulation(const Place& place) {
  place.require_keys({"link_efficiency", "window",        "scratch_mb",        "put_overhead_us", "latency_us",
                      "cast_gbs",        "h2d_gbs",       "verify_gbs",        "copy_gbs",        "commit_ms",
                      "control_ms",      "delta_changed", "delta_scatter_gbs", "incast_senders",  "incast_penalty",
                      "jitter",          "seed",          "stragglers",        "gather",          "sources"});
  SimulationOptions options;
  options.link_efficiency = number_or(place, "link_efficiency", options.link_efficiency, 0.01, 1);
  if (place.has("window")) options.window = static_cast<std::uint32_t>(place.at("window").integer(1, 1024));
  if (place.has("scratch_mb"))
    options.scratch_bytes = static_cast<std::uint64_t>(place.at("scratch_mb").integer(1, 1 << 20)) * 1'000'000;
  for (const auto& [key, field] : {std::pair{"put_overhead_us", &SimulationOptions::put_overhead_us},
                                   {"latency_us", &SimulationOptions::latency_us},
                                   {"cast_gbs", &SimulationOptions::cast_gbs},
                                   {"h2d_gbs", &SimulationOptions::h2d_gbs},
                                   {"verify_gbs", &SimulationOptions::verify_gbs},
                                   {"copy_gbs", &SimulationOptions::copy_gbs},
                                   {"commit_ms", &SimulationOptions::commit_ms},
                                   {"control_ms", &SimulationOptions::control_ms},
                                   {"delta_scatter_gbs", &SimulationOptions::delta_scatter_gbs},
                                   {"incast_penalty", &SimulationOptions::incast_penalty}}) {
    options.*field = number_or(place, key, options.*field);
  }
  options.delta_changed = number_or(place, "delta_changed", options.delta_changed, 0, 1);
  options.jitter = number_or(place, "jitter", options.jitter, 0, 100);
  if (place.has("incast_senders")) {
    options.incast_senders = static_cast<std::uint32_t>(place.at("incast_senders").integer(1, UINT32_MAX));
  }
  if (place.has("seed")) options.seed = place.at("seed").count();
  if (place.has("stragglers")) options.stragglers = read_stragglers(place.at("stragglers"));
  if (place.has("gather")) options.gather = read_gather(place.at("gather"));
  if (place.has("sources")) {
    const auto sources = place.at("sources");
    if (!sources.value().is_object()) sources.fail("must be an object: where the value of each key comes from");
    for (const auto& item : sources.value().items()) {
      static_cast<void>(sources.at(item.key()).text(4096));
      if (!place.has(item.key())) sources.fail(fmt::format("\"{}\" is no key beside it", item.key().substr(0, 100)));
    }
  }
  return options;
}

}  // namespace weightcast

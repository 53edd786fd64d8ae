// The whole plan as JSON, see FORMATS.md: one step a line.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "schedule/plan.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;

Json destinations_of(const std::vector<Destination>& destinations) {
  Json json = Json::array();
  for (const auto& to : destinations) {
    Json one = {{"server", to.server}, {"column", to.column}};
    if (to.relay) one["relay"] = *to.relay;
    json.push_back(std::move(one));
  }
  return json;
}

template <class Items, class MakeJson>
std::string lines(std::string_view key, const Items& items, const MakeJson& make_json) {
  std::string text = fmt::format(",\n  \"{}\": [", key);
  const char* separator = "\n    ";
  for (const auto& item : items) {
    text += separator + make_json(item).dump();
    separator = ",\n    ";
  }
  return text + (items.empty() ? "]" : "\n  ]");
}

}  // namespace

std::string to_json(const Plan& plan) {
  auto text = fmt::format(
      "{{\n  \"format\": \"weightcast.plan/2\",\n  \"catalogs_digest\": \"{:016x}\",\n  \"chunk_bytes\": {},\n"
      "  \"receiver_credits\": {}",
      plan.catalogs_digest, plan.chunk_bytes, plan.receiver_credits);
  text += ",\n  \"trainer_bytes\": " + Json(plan.trainer_bytes).dump();
  text += ",\n  \"server_bytes\": " + Json(plan.server_bytes).dump();
  text += lines("server_loads", plan.server_loads, [](const ServerLoad& load) {
    return Json{{"nic_in", load.nic_in},
                {"nic_out", load.nic_out},
                {"nvlink_in", load.nvlink_in},
                {"nvlink_out", load.nvlink_out}};
  });
  text += lines("columns", plan.columns, [](const Column& column) { return Json(column); });
  text += lines("steps", plan.steps, [](const Step& step) {
    return Json{{"trainer", step.trainer},
                {"column", step.column},
                {"first", step.first},
                {"count", step.count},
                {"box", to_string(step.box)},
                {"recipe", to_string(step.recipe)},
                {"frame", to_string(step.frame)},
                {"destinations", destinations_of(step.destinations)},
                {"chunks", step.chunks},
                {"needs_amax", step.needs_amax},
                {"signal", step.signal}};
  });
  text += lines("scale_steps", plan.scale_steps, [](const ScaleStep& step) {
    return Json{{"trainer", step.trainer},
                {"column", step.column},
                {"first", step.first},
                {"count", step.count},
                {"recipe", to_string(step.recipe)},
                {"blocks", to_string(step.blocks)},
                {"frame", to_string(step.frame)},
                {"destinations", destinations_of(step.destinations)}};
  });
  text += lines("amax", plan.amax, [](const AmaxExchange& exchange) {
    Json runs = Json::array();
    for (const auto& run : exchange.runs) {
      runs.push_back({{"from_column", run.from_column},
                      {"to_column", run.to_column},
                      {"first", run.first},
                      {"count", run.count},
                      {"recipe", to_string(run.recipe)},
                      {"blocks", to_string(run.blocks)}});
    }
    return Json{{"from", exchange.from}, {"to", exchange.to}, {"runs", std::move(runs)}};
  });
  return text + "\n}\n";
}

}  // namespace weightcast

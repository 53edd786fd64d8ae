// A scenario is what a person wrote: it is accepted or refused with a reason, never more. Of what was accepted, small
// ones give catalogs that would be accepted from ranks.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/scenario.h"
#include "transport/base/status.h"

namespace {

using namespace weightcast;

bool is_small(const Scenario& scenario) {
  std::uint64_t ranks = scenario.trainer_hardware.nodes * scenario.trainer_hardware.gpus_per_node;
  for (const auto& pool : scenario.servers) ranks += pool.hardware.nodes * pool.hardware.gpus_per_node;
  const auto layers = static_cast<std::uint64_t>(scenario.model.num_hidden_layers);
  return ranks * layers * static_cast<std::uint64_t>(scenario.model.experts + 16) < 20'000;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  Scenario scenario;
  try {
    scenario = parse_scenario({reinterpret_cast<const char*>(input), input_bytes}, "fuzz");
    if (!is_small(scenario)) return 0;
    const auto catalogs = catalogs_of(scenario);
    if (catalogs.trainers.empty() || catalogs.servers.empty()) std::abort();
    static_cast<void>(parse_catalog(to_json(catalogs.servers.front()), "written"));
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

// A scenario is what a person wrote: it is accepted or refused with a reason, never more. Of what was accepted, small
// ones give catalogs that would be accepted from ranks.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/scenario.h"
#include "tests/fuzz/small_scenario.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  try {
    const auto scenario = parse_scenario({reinterpret_cast<const char*>(input), input_bytes}, "fuzz");
    if (!fuzz::is_small(scenario)) return 0;
    const auto catalogs = catalogs_of(scenario);
    if (catalogs.trainers.empty() || catalogs.servers.empty()) std::abort();
    static_cast<void>(parse_catalog(to_json(catalogs.servers.front()), "written"));
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

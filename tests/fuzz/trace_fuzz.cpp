// A trace of a measured run, from whoever ran it: it is put beside the simulated one or refused with a reason.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/simulate_text.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  SimulationResult simulated;
  simulated.spans = {{Role::trainer, 0, 1, 0, 1}, {Role::server, 1, 2, 0, 1}};
  try {
    if (to_trace(simulated, {reinterpret_cast<const char*>(input), input_bytes}, "fuzz").empty()) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

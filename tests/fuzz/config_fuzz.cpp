// A configuration is what a person typed: it is accepted or refused with a reason, never more.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/config.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  try {
    const std::string_view text(reinterpret_cast<const char*>(input), input_bytes);
    const Config config = parse_config(text, "fuzz");
    // What was accepted prints as something that is accepted, and means the same.
    const std::string printed = to_json(config);
    if (to_json(parse_config(printed, "printed")) != printed) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

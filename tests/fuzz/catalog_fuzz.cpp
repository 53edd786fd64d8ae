// A catalog is what a peer sent: it is accepted or refused with a reason, never more.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/catalog.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  try {
    const std::string_view text(reinterpret_cast<const char*>(input), input_bytes);
    const Catalog catalog = parse_catalog(text, "fuzz");
    // What was accepted is written as something that is accepted, and means the same.
    const Catalog again = parse_catalog(to_json(catalog), "written");
    if (digest_of(again) != digest_of(catalog)) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

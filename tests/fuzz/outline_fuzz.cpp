// A saved plan is a file that somebody kept: its outline is read or refused with a reason, never more. What was read
// differs from itself in nothing.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "schedule/plan_changes.h"
#include "transport/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  using namespace weightcast;
  const std::string_view text(reinterpret_cast<const char*>(input), input_bytes);
  try {
    const bool is_plan = is_saved_plan(text);
    const auto outline = parse_outline(text, "fuzz");
    if (!is_plan) std::abort();
    const auto changes = changes_between(outline, outline);
    if (changes.pairs_changed + changes.pairs_new + changes.pairs_gone + changes.bytes_moved != 0) std::abort();
    if (to_text(changes, outline, outline).empty() || to_json(changes, outline, outline).empty()) std::abort();
  } catch (const Error& error) {
    if (error.code() != Code::invalid_argument) std::abort();
  }
  return 0;
}

// What people and programs read of a simulated update.
#pragma once

#include <string>
#include <string_view>

#include "schedule/explain.h"
#include "schedule/simulate.h"

namespace weightcast {

struct Simulated {
  std::uint64_t bytes = 0;
  std::size_t trainers = 0;
  std::size_t servers = 0;
  Bound bound;
  SimulationResult result;
};

// A table for people; with `before`, what changed against it.
[[nodiscard]] std::string to_text(const Simulated& simulated);
[[nodiscard]] std::string to_text(const Simulated& before, const Simulated& after);
// All figures, and the spans that a picture needs.
[[nodiscard]] std::string to_json(const Simulated& simulated);

// For Perfetto and chrome://tracing: a process for each rank, a thread for each lane. `measured` is the text of the
// same format from a real run, or empty: its processes stand beside the simulated ones. Throws
// Error{invalid_argument} naming `origin` when it is something else.
[[nodiscard]] std::string to_trace(const SimulationResult& result, std::string_view measured,
                                   const std::string& origin);

}  // namespace weightcast

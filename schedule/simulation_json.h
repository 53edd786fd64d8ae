// The part "simulation" of a scenario, see FORMATS.md. For the .cpp files of this folder.
#pragma once

#include "schedule/simulate.h"

namespace weightcast {

class Place;  // schedule/place.h

// Throws Error{invalid_argument} naming the place: unknown keys, values out of range.
[[nodiscard]] SimulationOptions read_simulation(const Place& place);

}  // namespace weightcast

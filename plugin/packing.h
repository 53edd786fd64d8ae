// Scales that a commit writes a second time, in the layout of an engine's kernels: Entry::packed_scales.
#pragma once

#include <memory>

#include "plugin/landing.h"

namespace weightcast {

// `inner`, or a landing around it whose commit() packs the scales that inner's has made live. `catalog` has addresses
// and outlives it. Throws Error: invalid_argument where scales and packed scales are not both in the memory of one
// device, unavailable in builds without kernels.
[[nodiscard]] std::unique_ptr<LandingMemory> with_packed_scales(std::unique_ptr<LandingMemory> inner,
                                                                const Catalog& catalog);

}  // namespace weightcast

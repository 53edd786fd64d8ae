// Staged landing in the memory of one GPU.
#pragma once

#include <memory>

#include "plugin/landing.h"

namespace weightcast {

// A shadow beside the engine's regions, on their device; commit() is one batched copy on it, behind everything that the
// engine had submitted. Throws Error: invalid_argument when the regions are not all CUDA memory of one device,
// unavailable in builds without kernels. prepare() throws Error unavailable when the shadow does not fit.
[[nodiscard]] std::unique_ptr<LandingMemory> stage_on_gpu(const Catalog& catalog);

}  // namespace weightcast

// The compiled kernels. Internal to quant/.
#pragma once

#include "transport/cuda_driver.h"

namespace weightcast {

// A kernel of quant/kernels/kernels.cu, loaded once per process. Throws Error unavailable: no kernels in this build, no
// driver, or a device that they were not compiled for.
[[nodiscard]] CUfunc_st* gpu_kernel(const char* name);

}  // namespace weightcast

#include "quant/row_kernels.h"

#include "quant/cast.h"

namespace weightcast {

bool is_available(CastKernel kernel) noexcept {
  switch (kernel) {
    case CastKernel::automatic:
    case CastKernel::reference: return true;
#ifdef __x86_64__
    case CastKernel::avx2: return __builtin_cpu_supports("avx2");
    case CastKernel::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
    case CastKernel::avx2:
    case CastKernel::avx512: return false;
#endif
  }
  return false;
}

const RowKernels* best_row_kernels() noexcept {
#ifdef __x86_64__
  if (is_available(CastKernel::avx512)) return &kAvx512Rows;
  if (is_available(CastKernel::avx2)) return &kAvx2Rows;
#endif
  return nullptr;
}

}  // namespace weightcast

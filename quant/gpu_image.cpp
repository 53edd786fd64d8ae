#include "quant/gpu_image.h"

#include <fmt/format.h>

#include <map>
#include <mutex>
#include <string>

#include "quant/gpu.h"
#include "transport/base/status.h"
#ifdef WEIGHTCAST_HAS_KERNELS
extern "C" const unsigned char weightcast_kernels[];  // made by nvcc and bin2c, see meson.build
#endif

namespace weightcast {

bool has_gpu_kernels() noexcept {
#ifdef WEIGHTCAST_HAS_KERNELS
  return true;
#else
  return false;
#endif
}

CUfunc_st* gpu_kernel(const char* name) {
#ifdef WEIGHTCAST_HAS_KERNELS
  static std::mutex mutex;
  static CUlib_st* library = nullptr;                             // guarded by mutex; for the life of the process
  static std::map<std::string, CUkern_st*, std::less<>> kernels;  // guarded by mutex
  const std::scoped_lock lock(mutex);
  const auto& cuda = cuda_driver();
  if (library == nullptr) {
    check_cuda(cuda.library_load(&library, weightcast_kernels, nullptr, nullptr, 0, nullptr, nullptr, 0),
               "loading the kernels (they are compiled for compute capability 8.0, 9.0, 10.0 and newer)");
  }
  auto& kernel = kernels[name];
  if (kernel == nullptr) check_cuda(cuda.library_kernel(&kernel, library, name), name);
  return reinterpret_cast<CUfunc_st*>(kernel);  // a CUkernel stands for the function of whichever context is current
#else
  throw Error(Code::unavailable,
              fmt::format("this build has no CUDA kernels ({} is one): build it where nvcc is", name));
#endif
}

}  // namespace weightcast

#include "transport/cuda.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>

#include "transport/base/status.h"
#ifdef WEIGHTCAST_HAS_CUDA_H
#include <cuda.h>
#endif

namespace weightcast {
namespace {

// From cuda.h, whose presence at build time is not required; these are part of the driver's stable interface.
using DevicePointer = std::uintptr_t;
constexpr int kAttributeMemoryType = 2;
constexpr int kAttributeDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeDevice = 2;

#ifdef WEIGHTCAST_HAS_CUDA_H
static_assert(sizeof(DevicePointer) == sizeof(CUdeviceptr) && sizeof(int) == sizeof(CUresult) &&
              sizeof(int) == sizeof(CUdevice) && sizeof(void*) == sizeof(CUcontext));
static_assert(kAttributeMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE && kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE &&
              kAttributeDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
static_assert(
    std::is_invocable_r_v<CUresult, decltype(cuInit), unsigned> &&
    std::is_invocable_r_v<CUresult, decltype(cuPointerGetAttribute), void*, CUpointer_attribute, CUdeviceptr> &&
    std::is_invocable_r_v<CUresult, decltype(cuMemGetAddressRange_v2), CUdeviceptr*, std::size_t*, CUdeviceptr> &&
    std::is_invocable_r_v<CUresult, decltype(cuDeviceGet), CUdevice*, int> &&
    std::is_invocable_r_v<CUresult, decltype(cuDevicePrimaryCtxRetain), CUcontext*, CUdevice> &&
    std::is_invocable_r_v<CUresult, decltype(cuCtxSetCurrent), CUcontext>);
#endif

struct Driver {
  int (*init)(unsigned) = nullptr;
  int (*pointer_attribute)(void*, int, DevicePointer) = nullptr;
  int (*address_range)(DevicePointer*, std::size_t*, DevicePointer) = nullptr;
  int (*device_get)(int*, int) = nullptr;
  int (*primary_retain)(void**, int) = nullptr;
  int (*set_current)(void*) = nullptr;
  bool usable = false;
};

template <class Function>
bool resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

const Driver& driver() {
  static const Driver found = [] {
    Driver it;
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    it.usable = library != nullptr && resolve(library, "cuInit", it.init) &&
                resolve(library, "cuPointerGetAttribute", it.pointer_attribute) &&
                resolve(library, "cuMemGetAddressRange_v2", it.address_range) &&
                resolve(library, "cuDeviceGet", it.device_get) &&
                resolve(library, "cuDevicePrimaryCtxRetain", it.primary_retain) &&
                resolve(library, "cuCtxSetCurrent", it.set_current) && it.init(0) == 0;
    return it;
  }();
  if (!found.usable)
    throw Error(Code::unavailable, "CUDA memory needs a CUDA driver: libcuda.so.1 is missing or unusable");
  return found;
}

}  // namespace

int check_cuda_memory(MemorySpan memory) {
  const auto& cuda = driver();
  const auto address = reinterpret_cast<DevicePointer>(memory.address);
  unsigned type = 0;
  int device = 0;
  if (cuda.pointer_attribute(&type, kAttributeMemoryType, address) != 0 || type != kMemoryTypeDevice ||
      cuda.pointer_attribute(&device, kAttributeDeviceOrdinal, address) != 0) {
    throw Error(Code::invalid_argument, fmt::format("{:#x} is no CUDA device memory", address));
  }
  DevicePointer base = 0;
  std::size_t bytes = 0;
  if (const int result = cuda.address_range(&base, &bytes, address); result != 0) {
    throw Error(Code::invalid_argument, fmt::format("CUDA names no allocation at {:#x}: error {}", address, result));
  }
  if (memory.bytes > base + bytes - address) {
    throw Error(Code::invalid_argument,
                fmt::format("{} bytes at {:#x} leave their CUDA allocation of {} bytes: memory of several chunks "
                            "(expandable segments) must be registered chunk by chunk",
                            memory.bytes, address, bytes));
  }
  return device;
}

void use_primary_cuda_context(int ordinal) {
  static std::mutex mutex;
  static std::array<void*, 64> retained{};  // guarded by mutex
  const auto& cuda = driver();
  const std::scoped_lock lock(mutex);
  int device = 0;
  auto& context = retained.at(static_cast<std::size_t>(ordinal));
  if (context == nullptr && (cuda.device_get(&device, ordinal) != 0 || cuda.primary_retain(&context, device) != 0)) {
    throw Error(Code::unavailable, fmt::format("CUDA device {} gives no context", ordinal));
  }
  if (cuda.set_current(context) != 0) {
    throw Error(Code::unavailable, fmt::format("the context of CUDA device {} cannot be made current", ordinal));
  }
}

}  // namespace weightcast

#include "transport/cuda.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <mutex>
#include <type_traits>

#include "transport/base/status.h"
#include "transport/cuda_driver.h"
#ifdef WEIGHTCAST_HAS_CUDA_H
#include <cuda.h>
#endif

namespace weightcast {
namespace {

// From cuda.h, as in cuda_driver.h.
constexpr int kAttributeMemoryType = 2;
constexpr int kAttributeDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeDevice = 2;

#ifdef WEIGHTCAST_HAS_CUDA_H
static_assert(std::is_same_v<CudaAddress, CUdeviceptr> && sizeof(int) == sizeof(CUresult) &&
              std::is_same_v<int, CUdevice> && sizeof(int) == sizeof(CUdevice_attribute));
static_assert(kAttributeMemoryType == CU_POINTER_ATTRIBUTE_MEMORY_TYPE && kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE &&
              kAttributeDeviceOrdinal == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);

// Same parameters as cuda.h declares, where enumerations count as int.
template <class Type>
using Plain = std::conditional_t<std::is_enum_v<Type>, int, Type>;
template <class Result, class... Parameters>
auto plain(Result (*)(Parameters...)) -> int (*)(Plain<Parameters>...);
#define WEIGHTCAST_SAME(member, function) \
  static_assert(std::is_same_v<decltype(CudaDriver::member), decltype(plain(&function))>)
WEIGHTCAST_SAME(init, cuInit);
WEIGHTCAST_SAME(pointer_attribute, cuPointerGetAttribute);
WEIGHTCAST_SAME(address_range, cuMemGetAddressRange_v2);
WEIGHTCAST_SAME(device_get, cuDeviceGet);
WEIGHTCAST_SAME(device_attribute, cuDeviceGetAttribute);
WEIGHTCAST_SAME(device_name, cuDeviceGetName);
WEIGHTCAST_SAME(primary_retain, cuDevicePrimaryCtxRetain);
WEIGHTCAST_SAME(set_current, cuCtxSetCurrent);
WEIGHTCAST_SAME(get_current, cuCtxGetCurrent);
WEIGHTCAST_SAME(push_current, cuCtxPushCurrent_v2);
WEIGHTCAST_SAME(pop_current, cuCtxPopCurrent_v2);
WEIGHTCAST_SAME(enable_peer, cuCtxEnablePeerAccess);
WEIGHTCAST_SAME(memory_allocate, cuMemAlloc_v2);
WEIGHTCAST_SAME(memory_free, cuMemFree_v2);
WEIGHTCAST_SAME(pinned_allocate, cuMemHostAlloc);
WEIGHTCAST_SAME(pinned_free, cuMemFreeHost);
WEIGHTCAST_SAME(copy_async, cuMemcpyAsync);
WEIGHTCAST_SAME(copy_between, cuMemcpyPeerAsync);
WEIGHTCAST_SAME(fill_async, cuMemsetD8Async);
WEIGHTCAST_SAME(stream_create, cuStreamCreateWithPriority);
WEIGHTCAST_SAME(stream_priorities, cuCtxGetStreamPriorityRange);
WEIGHTCAST_SAME(stream_destroy, cuStreamDestroy_v2);
WEIGHTCAST_SAME(stream_synchronize, cuStreamSynchronize);
WEIGHTCAST_SAME(stream_wait_event, cuStreamWaitEvent);
WEIGHTCAST_SAME(event_create, cuEventCreate);
WEIGHTCAST_SAME(event_destroy, cuEventDestroy_v2);
WEIGHTCAST_SAME(event_record, cuEventRecord);
WEIGHTCAST_SAME(event_query, cuEventQuery);
WEIGHTCAST_SAME(event_elapsed, cuEventElapsedTime);
WEIGHTCAST_SAME(library_kernel, cuLibraryGetKernel);
WEIGHTCAST_SAME(launch, cuLaunchKernel);
#undef WEIGHTCAST_SAME
#endif

template <class Function>
bool resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

bool resolve_all(void* library, CudaDriver& it) {
  return resolve(library, "cuInit", it.init) && resolve(library, "cuGetErrorName", it.error_name) &&
         resolve(library, "cuPointerGetAttribute", it.pointer_attribute) &&
         resolve(library, "cuMemGetAddressRange_v2", it.address_range) &&
         resolve(library, "cuDeviceGet", it.device_get) &&
         resolve(library, "cuDeviceGetAttribute", it.device_attribute) &&
         resolve(library, "cuDeviceGetName", it.device_name) &&
         resolve(library, "cuDevicePrimaryCtxRetain", it.primary_retain) &&
         resolve(library, "cuCtxSetCurrent", it.set_current) && resolve(library, "cuCtxGetCurrent", it.get_current) &&
         resolve(library, "cuCtxPushCurrent_v2", it.push_current) &&
         resolve(library, "cuCtxPopCurrent_v2", it.pop_current) &&
         resolve(library, "cuCtxEnablePeerAccess", it.enable_peer) &&
         resolve(library, "cuCtxSynchronize", it.synchronize) &&
         resolve(library, "cuMemAlloc_v2", it.memory_allocate) && resolve(library, "cuMemFree_v2", it.memory_free) &&
         resolve(library, "cuMemHostAlloc", it.pinned_allocate) && resolve(library, "cuMemFreeHost", it.pinned_free) &&
         resolve(library, "cuMemcpyAsync", it.copy_async) && resolve(library, "cuMemcpyPeerAsync", it.copy_between) &&
         resolve(library, "cuMemsetD8Async", it.fill_async) &&
         resolve(library, "cuStreamCreateWithPriority", it.stream_create) &&
         resolve(library, "cuCtxGetStreamPriorityRange", it.stream_priorities) &&
         resolve(library, "cuStreamDestroy_v2", it.stream_destroy) &&
         resolve(library, "cuStreamSynchronize", it.stream_synchronize) &&
         resolve(library, "cuStreamWaitEvent", it.stream_wait_event) &&
         resolve(library, "cuEventCreate", it.event_create) &&
         resolve(library, "cuEventDestroy_v2", it.event_destroy) &&
         resolve(library, "cuEventRecord", it.event_record) && resolve(library, "cuEventQuery", it.event_query) &&
         resolve(library, "cuEventElapsedTime", it.event_elapsed) &&
         resolve(library, "cuLibraryLoadData", it.library_load) &&
         resolve(library, "cuLibraryGetKernel", it.library_kernel) && resolve(library, "cuLaunchKernel", it.launch);
}

// What newer drivers have.
void resolve_optional(void* library, CudaDriver& it) { (void)resolve(library, "cuMemcpyBatchAsync", it.copy_batch); }

}  // namespace

const CudaDriver& cuda_driver() {
  struct Found {
    CudaDriver driver{};
    bool usable = false;
  };
  static const Found found = [] {
    Found it;
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    it.usable = library != nullptr && resolve_all(library, it.driver) && it.driver.init(0) == 0;
    if (it.usable) resolve_optional(library, it.driver);
    return it;
  }();
  if (!found.usable)
    throw Error(Code::unavailable,
                "CUDA memory needs a CUDA driver: libcuda.so.1 is missing, unusable or older than 12");
  return found.driver;
}

void check_cuda(int result, const char* doing) {
  if (result == 0) return;
  const char* name = nullptr;
  if (cuda_driver().error_name(result, &name) != 0) name = nullptr;
  throw Error(Code::unavailable, fmt::format("CUDA: {}: {}", doing, name == nullptr ? "unknown error" : name));
}

CUctx_st* primary_cuda_context(int ordinal) {
  static std::mutex mutex;
  static std::array<CUctx_st*, 64> retained{};  // guarded by mutex
  const auto& cuda = cuda_driver();
  const std::scoped_lock lock(mutex);
  int device = 0;
  auto& context = retained.at(static_cast<std::size_t>(ordinal));
  if (context == nullptr && (cuda.device_get(&device, ordinal) != 0 || cuda.primary_retain(&context, device) != 0)) {
    throw Error(Code::unavailable, fmt::format("CUDA device {} gives no context", ordinal));
  }
  return context;
}

int check_cuda_memory(MemorySpan memory) {
  const auto& cuda = cuda_driver();
  const auto address = reinterpret_cast<CudaAddress>(memory.address);
  unsigned type = 0;
  int device = 0;
  if (cuda.pointer_attribute(&type, kAttributeMemoryType, address) != 0 || type != kMemoryTypeDevice ||
      cuda.pointer_attribute(&device, kAttributeDeviceOrdinal, address) != 0) {
    throw Error(Code::invalid_argument, fmt::format("{:#x} is no CUDA device memory", address));
  }
  CudaAddress base = 0;
  std::size_t bytes = 0;
  const CudaContextScope current(device);  // the driver asks for one, and any thread may call
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

bool is_cuda_memory(const std::byte* address) noexcept {
  unsigned type = 0;
  try {
    return cuda_driver().pointer_attribute(&type, kAttributeMemoryType, reinterpret_cast<CudaAddress>(address)) == 0 &&
           type == kMemoryTypeDevice;
  } catch (const Error&) {
    return false;
  }
}

void use_primary_cuda_context(int device) {
  if (cuda_driver().set_current(primary_cuda_context(device)) != 0) {
    throw Error(Code::unavailable, fmt::format("the context of CUDA device {} cannot be made current", device));
  }
}

CudaContextScope::CudaContextScope(int device) {
  check_cuda(cuda_driver().push_current(primary_cuda_context(device)), "making a context current");
}
CudaContextScope::~CudaContextScope() {
  CUctx_st* popped = nullptr;
  cuda_driver().pop_current(&popped);
}

void wait_for_cuda_device() { check_cuda(cuda_driver().synchronize(), "waiting for the device"); }

}  // namespace weightcast

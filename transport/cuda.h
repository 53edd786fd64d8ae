// The CUDA driver as far as moving bytes needs it: opened at run time, so everything loads and runs without one.
#pragma once

#include "transport/memory.h"

namespace weightcast {

// Throws Error: unavailable without a driver; invalid_argument when the span is no device memory, or does not lie in
// one allocation of cuMemGetAddressRange (UCX exports only the first chunk of a range over several).
// Returns the ordinal of the device that holds it.
[[nodiscard]] int check_cuda_memory(MemorySpan memory);

// Whether kernels reach the address as a device's memory; false without a driver.
[[nodiscard]] bool is_cuda_memory(const std::byte* address) noexcept;

// Makes the device's primary context, retained for the life of the process, current on this thread. UCX needs one
// before it unpacks keys of CUDA memory, else puts silently take the slow path. Throws Error unavailable.
void use_primary_cuda_context(int device);

// The same for a while, on a thread that belongs to the host: its own context is current again afterwards.
class CudaContextScope {
 public:
  explicit CudaContextScope(int device);
  CudaContextScope(const CudaContextScope&) = delete;
  CudaContextScope& operator=(const CudaContextScope&) = delete;
  ~CudaContextScope();
};

// Until everything that was submitted to the current context has ended, on all its streams. Throws Error.
void wait_for_cuda_device();

}  // namespace weightcast

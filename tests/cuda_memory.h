// Device memory for tests, through the driver opened at run time: nothing of CUDA is needed to build.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "transport/memory.h"

namespace weightcast {

// A library that is there, and a device in it.
inline bool cuda_is_there() {
  static const bool there = [] {
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return false;
    auto* init = reinterpret_cast<int (*)(unsigned)>(::dlsym(library, "cuInit"));
    auto* count = reinterpret_cast<int (*)(int*)>(::dlsym(library, "cuDeviceGetCount"));
    int devices = 0;
    return init != nullptr && init(0) == 0 && count(&devices) == 0 && devices > 0;
  }();
  return there;
}

// One allocation on device 0. Every function throws std::runtime_error when the driver says no.
class CudaMemory {
 public:
  explicit CudaMemory(std::uint64_t bytes) : bytes_(bytes) {
    void* context = nullptr;
    call("cuInit", 0U);
    call("cuDevicePrimaryCtxRetain", &context, 0);
    call("cuCtxSetCurrent", context);
    call("cuMemAlloc_v2", &address_, bytes);
  }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  ~CudaMemory() { function<int(std::uintptr_t)>("cuMemFree_v2")(address_); }

  [[nodiscard]] MemorySpan span() const { return {reinterpret_cast<std::byte*>(address_), bytes_, MemoryKind::cuda}; }
  void write(std::span<const std::byte> bytes) { call("cuMemcpyHtoD_v2", address_, bytes.data(), bytes.size()); }
  [[nodiscard]] std::vector<std::byte> read() const {
    std::vector<std::byte> bytes(bytes_);
    call("cuMemcpyDtoH_v2", bytes.data(), address_, bytes.size());
    return bytes;
  }

 private:
  template <class Signature>
  static Signature* function(const char* name) {
    static void* const library = ::dlopen("libcuda.so.1", RTLD_NOW);
    void* found = library == nullptr ? nullptr : ::dlsym(library, name);
    if (found == nullptr) throw std::runtime_error(std::string("no ") + name + " in libcuda.so.1");
    return reinterpret_cast<Signature*>(found);
  }
  template <class... Arguments>
  static void call(const char* name, Arguments... arguments) {
    const int result = function<int(Arguments...)>(name)(arguments...);
    if (result != 0) throw std::runtime_error(std::string(name) + " gives " + std::to_string(result));
  }

  std::uintptr_t address_ = 0;
  std::uint64_t bytes_;
};

}  // namespace weightcast

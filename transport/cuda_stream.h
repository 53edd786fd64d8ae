// Memory, streams and events of the CUDA driver, one RAII type each. In a process without a driver everything compiles
// and loads; constructors throw Error unavailable.
//
// Threads: each object on one thread at a time, and use_primary_cuda_context() on that thread first; whoever destroys
// it needs no context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "transport/base/status.h"
#include "transport/cuda_driver.h"

namespace weightcast {

// Frees what belongs to the context that was current when it was made.
template <class Type, void (*free)(Type*)>
class FreeInContext {
 public:
  FreeInContext() = default;
  explicit FreeInContext(CUctx_st* context) noexcept : context_(context) {}
  void operator()(Type* handle) const noexcept {
    CUctx_st* popped = nullptr;
    cuda_driver().push_current(context_);
    free(handle);
    cuda_driver().pop_current(&popped);
  }

 private:
  CUctx_st* context_ = nullptr;
};

// Work that runs in order on the device, concurrent with other streams'.
class CudaStream {
 public:
  // urgent: the blocks of its kernels start before those that wait on streams of Kind::plain.
  enum class Kind { plain, urgent };
  explicit CudaStream(Kind kind = Kind::plain);
  [[nodiscard]] CUstream_st* get() const noexcept { return handle_.get(); }
  // Blocks; for set-up, tests and measurements, never in the steady state of an update.
  void synchronize() const;

 private:
  static void destroy(CUstream_st* stream) noexcept;
  std::unique_ptr<CUstream_st, FreeInContext<CUstream_st, &CudaStream::destroy>> handle_;
};

// A point in a stream.
class CudaEvent {
 public:
  enum class Kind { plain, timed };
  explicit CudaEvent(Kind kind = Kind::plain);
  void record(const CudaStream& stream) const;
  // Makes what is submitted to `stream` from now on wait for the last record().
  void delay(const CudaStream& stream) const;
  // Whether everything before the last record() has ended; an error of the device shows here. Never blocks.
  [[nodiscard]] Status query(bool& is_done) const;
  // Between two events of Kind::timed that are done.
  [[nodiscard]] double seconds_since(const CudaEvent& start) const;

 private:
  static void destroy(CUevent_st* event) noexcept;
  std::unique_ptr<CUevent_st, FreeInContext<CUevent_st, &CudaEvent::destroy>> handle_;
};

// One cudaMalloc-like allocation, which peers can reach through cuda_ipc. Uninitialised.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::uint64_t bytes);
  [[nodiscard]] std::byte* get() const noexcept { return memory_.get(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  static void free(std::byte* memory) noexcept;
  std::unique_ptr<std::byte, FreeInContext<std::byte, &DeviceBuffer::free>> memory_;
  std::uint64_t bytes_ = 0;
};

// Page-locked host memory, which the device reads and writes at the speed of its bus. Zeroed.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::uint64_t bytes);
  [[nodiscard]] std::byte* get() const noexcept { return memory_.get(); }
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  static void free(std::byte* memory) noexcept;
  std::unique_ptr<std::byte, FreeInContext<std::byte, &PinnedBuffer::free>> memory_;
  std::uint64_t bytes_ = 0;
};

// Enqueued: between any two of device memory and pinned memory.
void copy_async(std::byte* to, const std::byte* from, std::uint64_t bytes, const CudaStream& stream);
void fill_async(std::byte* memory, std::byte value, std::uint64_t bytes, const CudaStream& stream);

// Copies between memories of this device and of others that are mapped here. One call enqueues all: they do not wait
// for one another, so that copy engines move runs of 1 MiB as fast as long ones.
class CudaCopies {
 public:
  // The driver can: CUDA 12.8 or newer.
  [[nodiscard]] static bool are_supported();
  void add(std::byte* to, const std::byte* from, std::uint64_t bytes);
  // Enqueued; nothing is allocated.
  void launch(const CudaStream& stream);

 private:
  std::vector<CudaAddress> to_, from_;
  std::vector<std::size_t> bytes_;
};

// Enqueued: from one device's memory into another's, over what links them. Directly where reach_cuda_device() was
// called before for the device of the current context, else through the host.
void copy_between_devices(std::byte* to, int to_device, const std::byte* from, int from_device, std::uint64_t bytes,
                          const CudaStream& stream);
// Opens `device`'s memory to the current context; nothing if it is open or the same device. Throws Error unavailable
// where nothing links the two.
void reach_cuda_device(int device);

struct CudaDeviceFacts {
  std::string name;  // "NVIDIA H200"
  int multiprocessors = 0;
};
[[nodiscard]] CudaDeviceFacts cuda_device_facts(int device);

}  // namespace weightcast

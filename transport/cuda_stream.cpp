#include "transport/cuda_stream.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace weightcast {
namespace {

constexpr unsigned kNonBlockingStream = 1;  // CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream
constexpr unsigned kEventWithoutTime = 2;   // CU_EVENT_DISABLE_TIMING
constexpr int kNotReady = 600;              // CUDA_ERROR_NOT_READY
// A peer that opened memory of whole large pages wrote to it a third faster (bench/README.md); why is not known.
constexpr std::uint64_t kLargePage = 2 << 20;
constexpr int kPeerAlreadyOpen = 704;     // CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
constexpr int kMultiprocessorCount = 16;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT

CudaAddress address_of(const std::byte* memory) noexcept { return reinterpret_cast<CudaAddress>(memory); }

CUctx_st* current_context() {
  CUctx_st* context = nullptr;
  check_cuda(cuda_driver().get_current(&context), "asking for the current context");
  return context;
}

}  // namespace

CudaStream::CudaStream(Kind kind) {
  CUstream_st* stream = nullptr;
  int least = 0;
  int greatest = 0;
  check_cuda(cuda_driver().stream_priorities(&least, &greatest), "asking for the priorities of streams");
  check_cuda(cuda_driver().stream_create(&stream, kNonBlockingStream, kind == Kind::urgent ? greatest : 0),
             "creating a stream");
  handle_ = {stream, decltype(handle_)::deleter_type(current_context())};
}
void CudaStream::destroy(CUstream_st* stream) noexcept { cuda_driver().stream_destroy(stream); }
void CudaStream::synchronize() const {
  check_cuda(cuda_driver().stream_synchronize(get()), "waiting for a stream, or work before it");
}

CudaEvent::CudaEvent(Kind kind) {
  CUevent_st* event = nullptr;
  check_cuda(cuda_driver().event_create(&event, kind == Kind::timed ? 0 : kEventWithoutTime), "creating an event");
  handle_ = {event, decltype(handle_)::deleter_type(current_context())};
}
void CudaEvent::destroy(CUevent_st* event) noexcept { cuda_driver().event_destroy(event); }
void CudaEvent::record(const CudaStream& stream) const {
  check_cuda(cuda_driver().event_record(handle_.get(), stream.get()), "recording an event");
}
void CudaEvent::delay(const CudaStream& stream) const {
  check_cuda(cuda_driver().stream_wait_event(stream.get(), handle_.get(), 0), "waiting for an event on a stream");
}
Status CudaEvent::query(bool& is_done) const {
  const int result = cuda_driver().event_query(handle_.get());
  is_done = result != kNotReady;
  if (result == 0 || result == kNotReady) return {};
  const char* name = nullptr;
  if (cuda_driver().error_name(result, &name) != 0) name = nullptr;
  return {Code::unavailable, std::string("CUDA: work on the device failed: ") + (name == nullptr ? "unknown" : name)};
}
double CudaEvent::seconds_since(const CudaEvent& start) const {
  float milliseconds = 0;
  check_cuda(cuda_driver().event_elapsed(&milliseconds, start.handle_.get(), handle_.get()), "timing");
  return milliseconds * 1e-3;
}

DeviceBuffer::DeviceBuffer(std::uint64_t bytes) : bytes_(bytes) {
  const std::uint64_t whole_pages = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  CudaAddress address = 0;
  check_cuda(
      cuda_driver().memory_allocate(&address, bytes < kLargePage ? std::max<std::uint64_t>(bytes, 1) : whole_pages),
      "allocating device memory");
  memory_ = {reinterpret_cast<std::byte*>(address), decltype(memory_)::deleter_type(current_context())};
}
void DeviceBuffer::free(std::byte* memory) noexcept { cuda_driver().memory_free(address_of(memory)); }

PinnedBuffer::PinnedBuffer(std::uint64_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  check_cuda(cuda_driver().pinned_allocate(&memory, bytes == 0 ? 1 : bytes, 0), "allocating pinned host memory");
  memory_ = {static_cast<std::byte*>(memory), decltype(memory_)::deleter_type(current_context())};
  std::memset(memory, 0, bytes);
}
void PinnedBuffer::free(std::byte* memory) noexcept { cuda_driver().pinned_free(memory); }

void copy_async(std::byte* to, const std::byte* from, std::uint64_t bytes, const CudaStream& stream) {
  if (bytes == 0) return;
  check_cuda(cuda_driver().copy_async(address_of(to), address_of(from), bytes, stream.get()), "copying");
}
void fill_async(std::byte* memory, std::byte value, std::uint64_t bytes, const CudaStream& stream) {
  if (bytes == 0) return;  // the driver refuses null addresses
  check_cuda(cuda_driver().fill_async(address_of(memory), static_cast<unsigned char>(value), bytes, stream.get()),
             "filling memory");
}

bool CudaCopies::are_supported() { return cuda_driver().copy_batch != nullptr; }
void CudaCopies::add(std::byte* to, const std::byte* from, std::uint64_t bytes) {
  to_.push_back(address_of(to));
  from_.push_back(address_of(from));
  bytes_.push_back(bytes);
}
void CudaCopies::launch(const CudaStream& stream) {
  if (bytes_.empty()) return;
  struct {                        // CUmemcpyAttributes
    int source_access_order = 1;  // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM: behind what was submitted before
    std::array<int, 4> location_hints{};
    unsigned flags = 0;
  } attributes;
  std::size_t first = 0;
  std::size_t failed = 0;
  check_cuda(cuda_driver().copy_batch(to_.data(), from_.data(), bytes_.data(), bytes_.size(), &attributes, &first, 1,
                                      &failed, stream.get()),
             "copying in a batch");
}

void copy_between_devices(std::byte* to, int to_device, const std::byte* from, int from_device, std::uint64_t bytes,
                          const CudaStream& stream) {
  check_cuda(cuda_driver().copy_between(address_of(to), primary_cuda_context(to_device), address_of(from),
                                        primary_cuda_context(from_device), bytes, stream.get()),
             "copying between devices");
}

void reach_cuda_device(int device) {
  CUctx_st* const context = primary_cuda_context(device);
  if (context == current_context()) return;
  const int result = cuda_driver().enable_peer(context, 0);
  if (result != kPeerAlreadyOpen) check_cuda(result, "opening another device's memory");
}

CudaDeviceFacts cuda_device_facts(int ordinal) {
  int device = 0;
  CudaDeviceFacts facts;
  std::array<char, 256> name{};
  check_cuda(cuda_driver().device_get(&device, ordinal), "looking for the device");
  check_cuda(cuda_driver().device_name(name.data(), static_cast<int>(name.size()), device), "naming the device");
  check_cuda(cuda_driver().device_attribute(&facts.multiprocessors, kMultiprocessorCount, device),
             "counting multiprocessors");
  facts.name = name.data();
  return facts;
}

}  // namespace weightcast

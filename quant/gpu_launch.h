// Tables into device memory, and kernels by name. Internal to quant/.
#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "quant/gpu_image.h"
#include "transport/cuda_stream.h"

namespace weightcast {

// Blocks until the table has arrived: for set-up.
template <class Row>
DeviceBuffer upload(const std::vector<Row>& rows) {
  const std::uint64_t bytes = rows.size() * sizeof(Row);
  DeviceBuffer table(bytes);
  if (bytes == 0) return table;
  PinnedBuffer staging(bytes);
  std::memcpy(staging.get(), rows.data(), bytes);
  const CudaStream stream;
  copy_async(table.get(), staging.get(), bytes, stream);
  stream.synchronize();
  return table;
}

template <class... Arguments>
void launch_kernel(const char* name, unsigned blocks, unsigned threads, CUstream_st* stream, Arguments... arguments) {
  if (blocks == 0) return;
  std::array<void*, sizeof...(arguments)> pointers = {&arguments...};
  check_cuda(cuda_driver().launch(gpu_kernel(name), blocks, 1, 1, threads, 1, 1, 0, stream, pointers.data(), nullptr),
             name);
}

}  // namespace weightcast

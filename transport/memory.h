// What memory is, as far as moving bytes is concerned. Values only: no UCX, no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

enum class MemoryKind : std::uint8_t { host = 0, cuda = 1 };

// A run of bytes in this process. Borrowed, never owned.
struct MemorySpan {
  std::byte* address = nullptr;
  std::uint64_t bytes = 0;
  MemoryKind kind = MemoryKind::host;
};

}  // namespace weightcast

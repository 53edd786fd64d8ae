// How a tile's values get into registers: 16 threads to a row, 8 values as BF16 to a thread, 8 rows, 16 apart.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "quant/gpu_tables.h"

namespace weightcast::gpu {

constexpr int kWide = 8;  // values in one load
constexpr int kThreadsOfRow = kTile / kWide;
constexpr int kRowsOfPass = kTileThreads / kThreadsOfRow;
constexpr int kPasses = kTile / kRowsOfPass;
constexpr unsigned kBf16Infinity = 0x7F80;

struct Values {
  uint4 pass[kPasses];  // zero outside the matrix
};

__device__ inline unsigned rounded(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }

// Through the L1, which nobody needs: a request for a whole line serves the memory better than one for half of it.
__device__ inline uint4 load_wide(const void* memory) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(memory));
  return v;
}

// Past the L1: better where nothing but reading goes on.
__device__ inline uint4 load_once(const void* memory) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(memory));
  return v;
}

// As load_wide(), made where it stands: so that many are under way before the first is used.
__device__ inline uint4 load_now(const void* memory) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(memory));
  return v;
}

// 8 values, aligned to 16 bytes, as BF16.
struct Bf16 {
  static constexpr int kBytes = 2;
  __device__ static uint4 load(const unsigned char* first) { return load_wide(first); }
};
struct Fp32 {
  static constexpr int kBytes = 4;
  __device__ static uint4 load(const unsigned char* first) {
    const uint4 a = load_wide(first);
    const uint4 b = load_wide(first + 16);
    const auto pair = [](unsigned left, unsigned right) {
      return rounded(__uint_as_float(left)) | rounded(__uint_as_float(right)) << 16;
    };
    return {pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w)};
  }
};

__device__ __noinline__ float value_at(const CastMatrix& m, int row, int col) {
  const std::int64_t index = row * m.row_stride + col * m.col_stride;
  const unsigned char* memory = m.source + index * (m.type == SourceType::fp32 ? 4 : 2);
  unsigned bits = memory[0] | memory[1] << 8;  // a source may begin at any byte
  if (m.type == SourceType::bf16) return __uint_as_float(bits << 16);
  if (m.type == SourceType::fp16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  bits |= memory[2] << 16 | static_cast<unsigned>(memory[3]) << 24;
  return __uint_as_float(bits);
}

// Values of any type, stride and alignment.
struct LoadAny {
  __device__ static unsigned one(const CastMatrix& m, int row, int col) {
    return col >= 0 && col < m.cols ? rounded(value_at(m, row, col)) : 0;
  }
  __device__ static uint4 at(const CastMatrix& m, int row, int col) {
    const auto pair = [&](int at) { return one(m, row, col + at) | one(m, row, col + at + 1) << 16; };
    return {pair(0), pair(2), pair(4), pair(6)};
  }
};

__device__ inline int row_of(int thread, int pass) { return thread / kThreadsOfRow + pass * kRowsOfPass; }
__device__ inline int col_of(int thread) { return thread % kThreadsOfRow * kWide; }
// Of 8 values from `col` on, whether some are in the matrix.
__device__ inline bool is_inside(const CastMatrix& m, int row, int col) {
  return row >= 0 && row < m.rows && col > -kWide && col < m.cols;
}

__device__ inline Values load_any(const CastMatrix& m, const Tile& tile, int thread) {
  Values values;
  const int col = tile.col + col_of(thread);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = tile.row + row_of(thread, pass);
    values.pass[pass] = is_inside(m, row, col) ? LoadAny::at(m, row, col) : uint4{};
  }
  return values;
}

template <class Source>
__device__ Values load_aligned(const CastMatrix& m, const Tile& tile, int thread) {
  Values values;
  const int col = tile.col + col_of(thread);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = tile.row + row_of(thread, pass);
    const unsigned char* first = m.source + (row * m.row_stride + col) * Source::kBytes;
    values.pass[pass] = is_inside(m, row, col) ? Source::load(first) : uint4{};
  }
  return values;
}

__device__ inline bool is_whole(const FastTile& tile) {
  return tile.first_row == 0 && tile.end_row == kTile && tile.first_col == 0 && tile.end_col == kTile;
}
__device__ inline bool is_inside(const FastTile& tile, int row, int col) {
  return row >= tile.first_row && row < tile.end_row && col >= tile.first_col && col < tile.end_col;
}

template <class Source>
__device__ Values load(const FastTile& tile, int thread) {
  Values values;
  const int col = col_of(thread);
  const std::int64_t step = static_cast<std::int64_t>(kRowsOfPass) * tile.row_stride * Source::kBytes;
  const unsigned char* first =
      tile.source + (static_cast<std::int64_t>(row_of(thread, 0)) * tile.row_stride + col) * Source::kBytes;
  if (is_whole(tile)) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) values.pass[pass] = Source::load(first + pass * step);
    return values;
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    values.pass[pass] = is_inside(tile, row_of(thread, pass), col) ? Source::load(first + pass * step) : uint4{};
  }
  return values;
}

// The largest magnitude bits of 8 values: an order of bits is one of magnitudes, and NaN and Inf come out on top.
__device__ inline unsigned largest_pair(uint4 v) {
  constexpr unsigned kMagnitudes = 0x7FFF7FFF;
  return __vmaxu2(__vmaxu2(v.x & kMagnitudes, v.y & kMagnitudes), __vmaxu2(v.z & kMagnitudes, v.w & kMagnitudes));
}
__device__ inline unsigned larger_of_pair(unsigned pair) { return max(pair & 0xFFFF, pair >> 16); }
__device__ inline unsigned largest(const Values& values) {
  unsigned pair = 0;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) pair = __vmaxu2(pair, largest_pair(values.pass[pass]));
  return larger_of_pair(pair);
}

// Shared by the threads of a tile. Two turns alternate, so that one barrier per tile is enough.
struct alignas(16) Exchange {
  unsigned largest[2][kTileThreads / 32];
  unsigned long long sum[2];
  unsigned warps[2];  // that have added to the sum
};

// The threads that share a tile, all of a block or a quarter of one.
struct Group {
  int thread;
  int barrier;
  Exchange* exchange;
  int turn;
  __device__ void wait() const { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kTileThreads) : "memory"); }
};

__device__ inline unsigned largest_of_tile(unsigned own, const Group& group) {
  unsigned* const shared = group.exchange->largest[group.turn & 1];
  own = __reduce_max_sync(~0U, own);
  if (group.thread % 32 == 0) shared[group.thread / 32] = own;
  if (group.thread == 0) group.exchange->sum[group.turn & 1] = group.exchange->warps[group.turn & 1] = 0;
  group.wait();
  const uint4 a = reinterpret_cast<const uint4*>(shared)[0];
  const uint4 b = reinterpret_cast<const uint4*>(shared)[1];
  return max(max(max(a.x, a.y), max(a.z, a.w)), max(max(b.x, b.y), max(b.z, b.w)));
}

__device__ inline void report(const Findings& findings, std::uint32_t matrix, std::int64_t value) {
  atomicMin(findings.first_bad, static_cast<unsigned long long>(matrix) << kBadValueBits | value);
}

// Only when one is there.
__device__ __noinline__ void report_bad(const CastMatrix& m, const Tile tile, int thread, const Findings& findings) {
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = tile.row + row_of(thread, pass);
    if (row < 0 || row >= m.rows) continue;
    for (int at = 0; at < kWide; ++at) {
      const int col = tile.col + col_of(thread) + at;
      if ((LoadAny::one(m, row, col) & 0x7FFF) < kBf16Infinity) continue;
      report(findings, tile.matrix, static_cast<std::int64_t>(row) * m.cols + col);
      return;
    }
  }
}

}  // namespace weightcast::gpu

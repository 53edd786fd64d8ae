// Packed scales and deltas, as quant/packed_scales.h and quant/delta.h define them.
#pragma once

#include "quant/gpu_tables.h"

namespace weightcast::gpu {

__device__ inline void pack_group(const PackGroup& group) {
  for (std::int64_t row = threadIdx.x; row < group.rows; row += kTileThreads) {
    const unsigned* scales = group.scales + row / kTile * group.row_stride;
    unsigned word = 0;
    for (int col = 0; col < group.cols; ++col) word |= (scales[col * group.col_stride] >> 23 & 0xFF) << (8 * col);
    group.words[row] = word;
  }
}

// The changes of one chunk, which are of different bytes: in any order.
__device__ inline void apply_changes(const std::uint32_t* first, const std::uint16_t* position,
                                     const unsigned char* value, unsigned char* chunk) {
  const std::uint32_t end = first[1];
  for (std::uint32_t at = first[0] + threadIdx.x; at < end; at += kTileThreads) chunk[position[at]] = value[at];
}

}  // namespace weightcast::gpu

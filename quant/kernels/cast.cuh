// The casts. Each is the arithmetic of quant/scales.h, one value at a time: no fused multiply-add, no fast division.
#pragma once

#include <cuda_fp8.h>

#include "quant/kernels/mix.cuh"
#include "quant/kernels/values.cuh"
#include "quant/numbers.h"
#include "quant/scales.h"

namespace weightcast::gpu {

__device__ inline float left_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float right_of(unsigned pair) { return __uint_as_float(pair & 0xFFFF0000); }

__device__ inline unsigned e4m3_pair(unsigned bf16_pair, float multiplier) {
  const float2 scaled{left_of(bf16_pair) * multiplier, right_of(bf16_pair) * multiplier};
  return __nv_cvt_float2_to_fp8x2(scaled, __NV_SATFINITE, __NV_E4M3);
}
__device__ inline uint2 e4m3_codes(uint4 v, float multiplier) {
  return {e4m3_pair(v.x, multiplier) | e4m3_pair(v.y, multiplier) << 16,
          e4m3_pair(v.z, multiplier) | e4m3_pair(v.w, multiplier) << 16};
}
__device__ inline unsigned e2m1_pair(unsigned bf16_pair, float multiplier) {
  return e2m1_of_float(left_of(bf16_pair) * multiplier) | e2m1_of_float(right_of(bf16_pair) * multiplier) << 4;
}
__device__ inline unsigned e2m1_codes(uint4 v, float multiplier) {
  return e2m1_pair(v.x, multiplier) | e2m1_pair(v.y, multiplier) << 8 | e2m1_pair(v.z, multiplier) << 16 |
         e2m1_pair(v.w, multiplier) << 24;
}

// The number of the tile's block among those that the matrix touches.
__device__ inline int block_row(const CastMatrix& m, const Tile& tile) { return (tile.row + m.row_in_tile) / kTile; }
__device__ inline int block_col(const CastMatrix& m, const Tile& tile) { return (tile.col + m.col_in_tile) / kTile; }

__device__ inline float* amax_of(const CastMatrix& m, int row, int col) {
  return m.amax + row * m.amax_row_stride + col;
}

__device__ inline void store_scale(const CastMatrix& m, std::int64_t row, std::int64_t col, const BlockScale& scale) {
  if (m.scales == nullptr) return;
  const std::int64_t at = row * m.scale_row_stride + col * m.scale_col_stride;
  if (m.recipe == Recipe::mxfp8_e4m3_1x32 || m.recipe == Recipe::nvfp4_e2m1_1x16) {
    m.scales[at] = static_cast<unsigned char>(scale.stored);
  } else {
    reinterpret_cast<unsigned*>(m.scales)[at] = scale.stored;
  }
}

// The scale of a 128x128 block. False, after a report, when the tile has a bad value.
__device__ inline bool scale_tile(const CastMatrix* matrices, const Tile& tile, const float* others, Recipe recipe,
                                  unsigned own_largest, const Group& group, const Findings& findings,
                                  BlockScale& scale) {
  const unsigned bits = largest_of_tile(own_largest, group);
  if (bits >= kBf16Infinity) {
    report_bad(matrices[tile.matrix], tile, group.thread, findings);
    return false;
  }
  float amax = __uint_as_float(bits << 16);
  if (others != nullptr) amax = fmaxf(amax, *others);
  scale = recipe == Recipe::fp8_e4m3_128x128_fp32 ? block_scale(Recipe::fp8_e4m3_128x128_fp32, amax, 0)
                                                  : block_scale(Recipe::fp8_e4m3_128x128_ue8m0, amax, 0);
  return true;
}

// Adds the digests of a tile's threads to *to, once: many tiles share it. The last warp to arrive does; none waits.
__device__ inline void add_up(std::uint64_t sum, const Group& group, unsigned long long* to) {
  sum = sum_of_warp(sum);
  if (group.thread % 32 != 0) return;
  unsigned long long* const shared = &group.exchange->sum[group.turn & 1];
  atomicAdd(shared, static_cast<unsigned long long>(sum));
  __threadfence_block();
  if (atomicAdd(&group.exchange->warps[group.turn & 1], 1U) != kTileThreads / 32 - 1) return;
  __threadfence_block();
  atomicAdd(to, *static_cast<volatile unsigned long long*>(shared));
}

// A tile of a 128x128 recipe, aligned: read once, written once, its scale and its part of the digest on the way.
template <class Source, bool kDigest>
__device__ void cast_tile(const CastMatrix* matrices, const FastTile& tile, Recipe recipe, const Group& group,
                          std::uint64_t version, const Findings& findings) {
  const Values values = load<Source>(tile, group.thread);
  BlockScale scale;
  const Tile place{tile.matrix, tile.row, tile.col};
  if (!scale_tile(matrices, place, tile.amax, recipe, largest(values), group, findings, scale)) return;
  if (group.thread == 0 && tile.scale != nullptr) *tile.scale = scale.stored;
  const int row = row_of(group.thread, 0);
  const int col = col_of(group.thread);
  const bool whole = is_whole(tile);
  unsigned char* output = tile.output + static_cast<std::int64_t>(row) * tile.output_row_bytes + col;
  std::uint64_t sum = 0;
  std::uint64_t key = 0;
  if constexpr (kDigest) {
    const std::uint64_t word = tile.first_word + static_cast<std::uint64_t>(row) * tile.words_per_row + col / kWide;
    key = seed_of(version, tile.digest_key) + word * kGolden;
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    if (whole || is_inside(tile, row + pass * kRowsOfPass, col)) {
      const uint2 codes = e4m3_codes(values.pass[pass], scale.multiplier);
      __stcs(reinterpret_cast<uint2*>(output), codes);
      if constexpr (kDigest) sum += mix(codes.x, codes.y, key);
    }
    output += static_cast<std::int64_t>(kRowsOfPass) * tile.output_row_bytes;
    if constexpr (kDigest) key += static_cast<std::uint64_t>(kRowsOfPass) * tile.words_per_row * kGolden;
  }
  if constexpr (kDigest) add_up(sum, group, findings.digests + tile.slot);
}

// ---- any recipe with scales, any source, any alignment ----

__device__ inline void store_codes(const CastMatrix& m, int row, int col, uint4 v, float multiplier) {
  unsigned char* const output = m.output + row * m.output_row_bytes;
  if (m.recipe == Recipe::nvfp4_e2m1_1x16) {
    const unsigned codes = e2m1_codes(v, multiplier);  // values outside the matrix are zeros, and so are their codes
    for (int at = 0; at < kWide; at += 2) {
      if (col + at >= 0 && col + at < m.cols) output[(col + at) / 2] = static_cast<unsigned char>(codes >> (4 * at));
    }
    return;
  }
  const uint2 codes = e4m3_codes(v, multiplier);
  for (int at = 0; at < kWide; ++at) {
    const unsigned half = at < 4 ? codes.x : codes.y;
    if (col + at >= 0 && col + at < m.cols) output[col + at] = static_cast<unsigned char>(half >> (8 * (at % 4)));
  }
}

// The largest of `lanes` neighbours (a power of two), which all take part.
__device__ inline unsigned largest_of_lanes(unsigned own, int lanes) {
  for (int apart = 1; apart < lanes; apart *= 2) own = max(own, __shfl_xor_sync(~0U, own, apart));
  return own;
}

// The scale for one thread's 8 values of a row, for recipes whose blocks are not 128x128.
__device__ inline BlockScale scale_row(const CastMatrix& m, int row, int col, unsigned largest_bits, float tensor) {
  const bool inside = is_inside(m, row, col);
  if (m.recipe == Recipe::fp8_e4m3_tensor || m.recipe == Recipe::fp8_e4m3_channel) {
    const bool by_row = m.recipe == Recipe::fp8_e4m3_channel;
    const BlockScale scale = block_scale(m.recipe, inside ? *amax_of(m, by_row ? row : 0, 0) : 0.0F, 0);
    if (inside && col <= 0 && (by_row || row == 0)) store_scale(m, row, 0, scale);
    return scale;
  }
  const int edge = m.recipe == Recipe::mxfp8_e4m3_1x32 ? 32 : 16;
  const unsigned bits = largest_of_lanes(largest_bits, edge / kWide);
  const BlockScale scale = block_scale(m.recipe, __uint_as_float(bits << 16), tensor);
  const int first_block = m.col_in_tile / edge;
  if (inside && (col <= 0 || (col + m.col_in_tile) % edge == 0)) {
    store_scale(m, row, (col + m.col_in_tile) / edge - first_block, scale);
  }
  return scale;
}

__device__ inline void cast_tile_any(const CastMatrix* matrices, const Tile& tile, const Group& group,
                                     const Findings& findings) {
  const CastMatrix& m = matrices[tile.matrix];
  const Values values = load_any(m, tile, group.thread);
  const int col = tile.col + col_of(group.thread);
  const bool is_square = m.recipe == Recipe::fp8_e4m3_128x128_fp32 || m.recipe == Recipe::fp8_e4m3_128x128_ue8m0;
  BlockScale scale;
  if (is_square) {
    const int block_at[2] = {block_row(m, tile), block_col(m, tile)};
    const float* others = m.amax == nullptr ? nullptr : amax_of(m, block_at[0], block_at[1]);
    if (!scale_tile(matrices, tile, others, m.recipe, largest(values), group, findings, scale)) return;
    if (group.thread == 0) store_scale(m, block_at[0], block_at[1], scale);
  }
  if (!is_square && largest(values) >= kBf16Infinity) report_bad(m, tile, group.thread, findings);
  const float tensor = m.recipe == Recipe::nvfp4_e2m1_1x16 ? tensor_multiplier(*m.amax) : 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = tile.row + row_of(group.thread, pass);
    const uint4 v = values.pass[pass];
    if (!is_square) scale = scale_row(m, row, col, larger_of_pair(largest_pair(v)), tensor);
    if (is_inside(m, row, col)) store_codes(m, row, col, v, scale.multiplier);
  }
}

// ---- recipes without scales ----

__device__ inline bool convert_value(const CastMatrix& m, int row, int col) {
  const float value = value_at(m, row, col);
  unsigned char* const output = m.output + row * m.output_row_bytes;
  const auto store = [&](unsigned bits, int bytes) {
    for (int at = 0; at < bytes; ++at) output[col * bytes + at] = static_cast<unsigned char>(bits >> (8 * at));
  };
  if (m.recipe == Recipe::fp32) {
    store(__float_as_uint(value), 4);
    return is_finite(value);
  }
  const bool is_half = m.recipe == Recipe::fp16;
  const unsigned bits = is_half ? __half_as_ushort(__float2half_rn(value)) : rounded(value);
  store(bits, 2);
  return is_half ? is_finite_fp16(static_cast<std::uint16_t>(bits)) : is_finite_bf16(static_cast<std::uint16_t>(bits));
}

__device__ inline void convert_tile(const CastMatrix& m, const Tile& tile, int thread, const Findings& findings) {
  for (int at = thread; at < kTile * kTile; at += kTileThreads) {
    const int row = tile.row + at / kTile;
    const int col = tile.col + at % kTile;
    if (row < 0 || row >= m.rows || col < 0 || col >= m.cols || convert_value(m, row, col)) continue;
    report(findings, tile.matrix, static_cast<std::int64_t>(row) * m.cols + col);
  }
}

// ---- maxima alone ----

__device__ inline void raise(float* amax, unsigned bf16_bits) {  // an order of bits is one of magnitudes
  atomicMax(reinterpret_cast<unsigned*>(amax), bf16_bits << 16);
}

__device__ inline void measure_tile(const CastMatrix& m, const Tile& tile, const Group& group,
                                    const Findings& findings) {
  const Values values = !m.is_aligned                ? load_any(m, tile, group.thread)
                        : m.type == SourceType::fp32 ? load_aligned<Fp32>(m, tile, group.thread)
                                                     : load_aligned<Bf16>(m, tile, group.thread);
  const unsigned own = largest(values);
  if (own >= kBf16Infinity) report_bad(m, tile, group.thread, findings);
  if (m.recipe == Recipe::fp8_e4m3_channel) {
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = tile.row + row_of(group.thread, pass);
      const unsigned bits = largest_of_lanes(larger_of_pair(largest_pair(values.pass[pass])), kThreadsOfRow);
      if (group.thread % kThreadsOfRow == 0 && row >= 0 && row < m.rows) raise(amax_of(m, row, 0), bits);
    }
    return;
  }
  const unsigned bits = largest_of_tile(own, group);
  const bool is_square = m.recipe == Recipe::fp8_e4m3_128x128_fp32 || m.recipe == Recipe::fp8_e4m3_128x128_ue8m0;
  if (group.thread != 0) return;
  raise(is_square ? amax_of(m, block_row(m, tile), block_col(m, tile)) : m.amax, bits);
}

}  // namespace weightcast::gpu

// Scales of fp8_e4m3_128x128_ue8m0 as DeepGEMM reads them on Blackwell: of each FP32 power of two the exponent byte, in
// 32-bit words of four blocks of columns, one word for each row of values, words of neighbouring rows side by side:
//
//   byte of row r and block column c  =  group_stride_bytes * (c / 4) + 4 * r + c % 4
//
// Rows of a block repeat its exponents. Of the last word what is beyond the columns is zero. This is what DeepGEMM's
// get_mn_major_tma_aligned_packed_ue8m0_tensor makes of scales that were repeated 128 times.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

// The FP32 scales of one matrix, and where they go. Both are borrowed, and do not overlap.
struct PackedScalesJob {
  const std::byte* scales = nullptr;  // of block (0, 0), aligned to 4
  std::int64_t row_stride = 0;        // to the next row of blocks, in scales
  std::int64_t col_stride = 1;
  std::int64_t rows = 0;  // of values: 128 to a block, the last one may have fewer
  std::int64_t block_cols = 0;
  std::byte* packed = nullptr;  // the word of row 0 and block column 0, aligned to 4
  std::uint64_t group_stride_bytes = 0;
};

// From one group of four block columns to the next: rows of words padded to 16 bytes, as TMA wants them.
[[nodiscard]] constexpr std::uint64_t packed_group_bytes(std::int64_t rows) noexcept {
  return (4 * static_cast<std::uint64_t>(rows) + 15) / 16 * 16;
}

void pack_scales(const PackedScalesJob& job) noexcept;

}  // namespace weightcast

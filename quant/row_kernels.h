// Loops over contiguous values of one row, one set per instruction set. Any alignment; counts may be zero.
//
// The files that implement these are compiled for CPUs that may not be there: they use no inline function of another
// header, because the linker could then choose their copy for everybody. Internal to quant/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

struct RowKernels {
  // The first three read BF16 and return the largest magnitude bits (bits & 0x7FFF) that it read: from 0x7F80 on there
  // is a NaN or an Inf.
  std::uint16_t (*largest)(const std::byte* row, std::int64_t count) noexcept;
  std::uint16_t (*copy)(const std::byte* row, std::int64_t count, std::byte* output) noexcept;
  // E4M3 codes of value * inverses[block]; the first block has `first_width` columns, the others kBlock.
  std::uint16_t (*encode_e4m3)(const std::byte* row, std::int64_t count, std::int64_t first_width,
                               const float* inverses, std::byte* output) noexcept;
  // FP32 to the nearest BF16, ties to even; NaN becomes Inf.
  void (*round_fp32)(const std::byte* row, std::int64_t count, std::byte* output) noexcept;
  // Digest of whole words, see MixWords.
  std::uint64_t (*mix_words)(const std::byte* words, std::uint64_t count, std::uint64_t key) noexcept;
};

inline constexpr std::uint16_t kBf16Infinity = 0x7F80;

extern const RowKernels kAvx2Rows;    // needs AVX2
extern const RowKernels kAvx512Rows;  // needs AVX-512 F, BW, VL and DQ

// The best that this CPU has; nullptr when it has none of these.
[[nodiscard]] const RowKernels* best_row_kernels() noexcept;

}  // namespace weightcast

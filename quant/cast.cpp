#include "quant/cast.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "quant/blocks.h"
#include "quant/cast_reference.h"
#include "quant/digest_words.h"
#include "quant/numbers.h"
#include "quant/row_kernels.h"

namespace weightcast {
namespace {

constexpr std::int64_t kBf16Bytes = 2;

// The kernels for a source of contiguous BF16 rows; nullptr: the reference does it.
const RowKernels* rows_of(const SourceMatrix& source, CastKernel kernel) noexcept {
  const bool contiguous = source.type == SourceType::bf16 && (source.col_stride == 1 || source.cols == 1);
  if (!contiguous || !is_available(kernel)) return nullptr;
  switch (kernel) {
    case CastKernel::automatic: return best_row_kernels();
    case CastKernel::reference: return nullptr;
#ifdef __x86_64__
    case CastKernel::avx2: return &kAvx2Rows;
    case CastKernel::avx512: return &kAvx512Rows;
#endif
    default: return nullptr;
  }
}

const std::byte* row_of(const SourceMatrix& source, std::int64_t row) noexcept {
  return source.data + row * source.row_stride * kBf16Bytes;
}

// The kernels report that a row holds a NaN or an Inf; this says where.
BadValue first_bad(const SourceMatrix& source, std::int64_t row) noexcept {
  for (std::int64_t col = 0; col < source.cols; ++col) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, row_of(source, row) + col * kBf16Bytes, sizeof bits);
    if (!is_finite_bf16(bits)) return {row, col};
  }
  return {};
}

BadValue block_amax_of_rows(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax,
                            const RowKernels& kernels) noexcept {
  const BlockGrid grid(source, origin);
  std::fill_n(amax.begin(), grid.size(), 0.0F);
  for (std::int64_t row = 0; row < source.rows; ++row) {
    const std::byte* const values = row_of(source, row);
    std::size_t block = grid.index(row, 0);
    std::int64_t width = grid.first_width();
    for (std::int64_t col = 0; col < source.cols; col += width, width = kBlock, ++block) {
      width = std::min(width, source.cols - col);
      const std::uint16_t largest = kernels.largest(values + col * kBf16Bytes, width);
      if (largest >= kBf16Infinity) return first_bad(source, row);
      amax[block] = std::max(amax[block], float_of_bf16(largest));
    }
  }
  return {};
}

// 1 / scale of the blocks of a row from `first` on, while they last.
void invert_scales(std::span<const float> amax, std::size_t first, std::span<float> inverses) noexcept {
  const std::size_t count = std::min(amax.size() - first, inverses.size());
  for (std::size_t at = 0; at < count; ++at) inverses[at] = 1.0F / scale_of_amax(amax[first + at]);
}

// Encodes one row, at most kPieceBlocks blocks at a time. `inverses` still holds those of the row above when it is in
// the same blocks and has but one piece.
constexpr std::int64_t kPieceBlocks = 128;
using Inverses = std::array<float, kPieceBlocks>;
std::uint16_t encode_row(const SourceMatrix& source, std::int64_t row, const BlockGrid& grid,
                         std::span<const float> amax, Inverses& inverses, const RowKernels& kernels,
                         std::byte* output) noexcept {
  const bool is_one_piece = grid.first_width() + (kPieceBlocks - 1) * kBlock >= source.cols;
  std::uint16_t largest = 0;
  std::int64_t width = grid.first_width();
  for (std::int64_t col = 0; col < source.cols;) {
    if (!is_one_piece || grid.starts_block_row(row)) invert_scales(amax, grid.index(row, col), inverses);
    const std::int64_t count = std::min(width + (kPieceBlocks - 1) * kBlock, source.cols - col);
    const std::byte* const values = row_of(source, row) + col * kBf16Bytes;
    largest = std::max(largest, kernels.encode_e4m3(values, count, width, inverses.data(), output + col));
    col += count;
    width = kBlock;
  }
  return largest;
}

CastResult cast_rows(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                     std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame,
                     const RowKernels& kernels) noexcept {
  const BlockGrid grid(source, origin);
  const auto row_bytes = static_cast<std::uint64_t>(source.cols) * element_bytes(recipe);
  Inverses inverses;
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    std::byte* const output_row = output + row * output_row_bytes;
    const std::uint16_t largest = recipe == Recipe::bf16
                                      ? kernels.copy(row_of(source, row), source.cols, output_row)
                                      : encode_row(source, row, grid, amax, inverses, kernels, output_row);
    if (largest >= kBf16Infinity) return {.bad = first_bad(source, row)};
    result.digest += digest_row(output_row, row_bytes, static_cast<std::uint64_t>(row), frame, kernels.mix_words);
  }
  return result;
}

CastResult inspect_rows(const SourceMatrix& source, const DigestFrame& frame, const RowKernels& kernels) noexcept {
  const auto row_bytes = static_cast<std::uint64_t>(source.cols * kBf16Bytes);
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    if (kernels.largest(row_of(source, row), source.cols) >= kBf16Infinity) return {.bad = first_bad(source, row)};
    result.digest +=
        digest_row(row_of(source, row), row_bytes, static_cast<std::uint64_t>(row), frame, kernels.mix_words);
  }
  return result;
}

}  // namespace

float scale_of_amax(float amax) noexcept {
  constexpr float kLeastAmax = 1e-10F;
  constexpr float kInverseOfLargest = 1.0F / 448.0F;
  return (amax > kLeastAmax ? amax : kLeastAmax) * kInverseOfLargest;
}

std::uint64_t blocks_touched(const SourceMatrix& source, BlockOrigin origin) noexcept {
  return BlockGrid(source, origin).size();
}

BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax, CastKernel kernel) noexcept {
  const RowKernels* const kernels = rows_of(source, kernel);
  if (kernels == nullptr) return reference::block_amax(source, origin, amax);
  return block_amax_of_rows(source, origin, amax, *kernels);
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame,
                CastKernel kernel) noexcept {
  const bool has_kernel = recipe == Recipe::bf16 || recipe == Recipe::fp8_e4m3_128x128_fp32;
  const RowKernels* const kernels = has_kernel ? rows_of(source, kernel) : nullptr;
  if (kernels == nullptr) return reference::cast(source, recipe, origin, amax, output, output_row_bytes, frame);
  return cast_rows(source, recipe, origin, amax, output, output_row_bytes, frame, *kernels);
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame, CastKernel kernel) noexcept {
  const RowKernels* const kernels = rows_of(source, kernel);
  return kernels == nullptr ? reference::inspect(source, frame) : inspect_rows(source, frame, *kernels);
}

}  // namespace weightcast

#include "quant/cast_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "quant/blocks.h"
#include "quant/digest_words.h"
#include "quant/numbers.h"

namespace weightcast::rows {
namespace {

constexpr std::int64_t kPieceBlocks = 128;
constexpr std::int64_t kBf16Bytes = 2;
using PieceBuffer = std::array<std::uint16_t, kPieceBlocks * kBlock>;

const std::byte* value_of(const SourceMatrix& source, std::int64_t row, std::int64_t col) noexcept {
  const auto element = static_cast<std::int64_t>(element_bytes(source.type));
  return source.data + (row * source.row_stride + col * source.col_stride) * element;
}

template <class Bits>
Bits bits_at(const std::byte* memory) noexcept {
  Bits bits = 0;
  std::memcpy(&bits, memory, sizeof bits);
  return bits;
}

// As bf16_of_float, with Inf for NaN: both are errors, and only here would a NaN be rounded into a number.
std::uint16_t rounded(std::uint32_t fp32) noexcept {
  const std::uint32_t magnitude = std::min(fp32 & 0x7FFFFFFF, 0x7F800000U);
  return bf16_of_float(std::bit_cast<float>(magnitude | (fp32 & 0x80000000)));
}

// `count` values of a row as BF16, not finite where the source has no BF16: the source's own memory, or `buffer`.
const std::byte* bf16_piece(const SourceMatrix& source, std::int64_t row, std::int64_t col, std::int64_t count,
                            PieceBuffer& buffer, const RowKernels& kernels) noexcept {
  const std::byte* const first = value_of(source, row, col);
  auto* const bytes = reinterpret_cast<std::byte*>(buffer.data());
  if (is_contiguous(source) && source.type == SourceType::bf16) return first;
  if (is_contiguous(source) && source.type == SourceType::fp32) {
    kernels.round_fp32(first, count, bytes);
    return bytes;
  }
  const std::int64_t step = source.col_stride * static_cast<std::int64_t>(element_bytes(source.type));
  const auto gather = [&](auto bf16_of) {
    for (std::int64_t at = 0; at < count; ++at) buffer[static_cast<std::size_t>(at)] = bf16_of(first + at * step);
  };
  switch (source.type) {
    case SourceType::bf16: gather(bits_at<std::uint16_t>); break;
    case SourceType::fp32: gather([](const std::byte* at) { return rounded(bits_at<std::uint32_t>(at)); }); break;
    case SourceType::fp16:
      gather([](const std::byte* at) {
        return rounded(std::bit_cast<std::uint32_t>(float_of_fp16(bits_at<std::uint16_t>(at))));
      });
      break;
  }
  return bytes;
}

std::int64_t first_not_finite(const std::byte* bf16, std::int64_t count) noexcept {
  std::int64_t at = 0;
  while (at < count && is_finite_bf16(bits_at<std::uint16_t>(bf16 + at * kBf16Bytes))) ++at;
  return at;
}

// Calls act(piece) on the pieces of a row from left to right; act returns the largest magnitude bits that it saw.
// Returns the first bad value, where it stops.
struct Piece {
  const std::byte* values;  // BF16
  std::int64_t col;         // of the first value
  std::int64_t count;
  std::int64_t first_width;  // columns that the first block has in this piece
};
template <class Act>
BadValue for_pieces(const SourceMatrix& source, std::int64_t row, const BlockGrid& grid, PieceBuffer& buffer,
                    const RowKernels& kernels, Act act) noexcept {
  std::int64_t width = grid.first_width();
  for (std::int64_t col = 0; col < source.cols; width = kBlock) {
    const std::int64_t count = std::min(width + (kPieceBlocks - 1) * kBlock, source.cols - col);
    const std::byte* const values = bf16_piece(source, row, col, count, buffer, kernels);
    if (act(Piece{values, col, count, width}) >= kBf16Infinity) return {row, col + first_not_finite(values, count)};
    col += count;
  }
  return {};
}

// 1 / scale of the blocks from `first` on, while they last.
using Inverses = std::array<float, kPieceBlocks>;
void invert_scales(std::span<const float> amax, std::size_t first, Inverses& inverses) noexcept {
  const std::size_t count = std::min(amax.size() - first, inverses.size());
  for (std::size_t at = 0; at < count; ++at)
    inverses[at] = 1.0F / scale_of_amax(Recipe::fp8_e4m3_128x128_fp32, amax[first + at]);
}

}  // namespace

BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax,
                    const RowKernels& kernels) noexcept {
  const BlockGrid grid(source, origin);
  std::fill_n(amax.begin(), grid.size(), 0.0F);
  PieceBuffer buffer;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    const auto largest_in_blocks = [&](const Piece& piece) {
      std::size_t block = grid.index(row, piece.col);
      std::uint16_t largest = 0;
      std::int64_t width = piece.first_width;
      for (std::int64_t at = 0; at < piece.count; at += width, width = kBlock, ++block) {
        width = std::min(width, piece.count - at);
        const std::uint16_t bits = kernels.largest(piece.values + at * kBf16Bytes, width);
        amax[block] = std::max(amax[block], float_of_bf16(bits));
        largest = std::max(largest, bits);
      }
      return largest;
    };
    if (const BadValue bad = for_pieces(source, row, grid, buffer, kernels, largest_in_blocks); bad.found()) return bad;
  }
  return {};
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame,
                const RowKernels& kernels) noexcept {
  const BlockGrid grid(source, origin);
  const auto row_bytes = static_cast<std::uint64_t>(source.cols) * element_bytes(recipe);
  const bool is_one_piece = grid.first_width() + (kPieceBlocks - 1) * kBlock >= source.cols;
  PieceBuffer buffer;
  Inverses inverses;
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    std::byte* const output_row = output + row * output_row_bytes;
    const auto write = [&](const Piece& piece) {
      if (recipe == Recipe::bf16) {
        return kernels.copy(piece.values, piece.count, output_row + piece.col * kBf16Bytes);
      }
      // A row of one piece finds the inverses of the row above, until it starts new blocks.
      if (!is_one_piece || grid.starts_block_row(row)) invert_scales(amax, grid.index(row, piece.col), inverses);
      return kernels.encode_e4m3(piece.values, piece.count, piece.first_width, inverses.data(), output_row + piece.col);
    };
    if (const BadValue bad = for_pieces(source, row, grid, buffer, kernels, write); bad.found()) return {.bad = bad};
    result.digest += digest_row(output_row, row_bytes, static_cast<std::uint64_t>(row), frame, kernels.mix_words);
  }
  return result;
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame, const RowKernels& kernels) noexcept {
  constexpr std::int64_t kCachedBytes = 16 << 10;  // what is read twice: the second time from the nearest cache
  const std::int64_t row_bytes = source.cols * kBf16Bytes;
  const bool gapless = are_gapless(static_cast<std::uint64_t>(row_bytes), source.row_stride * kBf16Bytes, frame);
  const std::int64_t rows_at_once = gapless ? std::max<std::int64_t>(1, kCachedBytes / row_bytes) : 1;
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; row += rows_at_once) {
    const std::int64_t rows = std::min(rows_at_once, source.rows - row);
    const std::byte* const values = value_of(source, row, 0);
    if (kernels.largest(values, rows * source.cols) >= kBf16Infinity) {
      const std::int64_t bad = first_not_finite(values, rows * source.cols);
      return {.bad = {row + bad / source.cols, bad % source.cols}};
    }
    result.digest += digest_row(values, static_cast<std::uint64_t>(rows * row_bytes), static_cast<std::uint64_t>(row),
                                frame, kernels.mix_words);
  }
  return result;
}

}  // namespace weightcast::rows

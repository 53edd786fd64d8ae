// Matrices for tests of casts: every layout, and values of every kind.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <vector>

#include "quant/cast.h"

namespace weightcast {

inline constexpr std::array kRecipes = {Recipe::bf16,
                                        Recipe::fp16,
                                        Recipe::fp32,
                                        Recipe::fp8_e4m3_128x128_fp32,
                                        Recipe::fp8_e4m3_128x128_ue8m0,
                                        Recipe::fp8_e4m3_tensor,
                                        Recipe::fp8_e4m3_channel,
                                        Recipe::mxfp8_e4m3_1x32,
                                        Recipe::nvfp4_e2m1_1x16};
inline constexpr std::array kSources = {SourceType::bf16, SourceType::fp16, SourceType::fp32};
using Random = std::mt19937_64;

// Those that this processor can run.
inline std::vector<CastKernel> kernels() {
  std::vector<CastKernel> available;
  for (const auto kernel : {CastKernel::automatic, CastKernel::reference, CastKernel::avx2, CastKernel::avx512}) {
    if (is_available(kernel)) available.push_back(kernel);
  }
  return available;
}

inline std::int64_t pick(Random& random, std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(random);
}

// A matrix that owns its memory, in any layout.
struct Matrix {
  std::vector<std::byte> memory;
  SourceMatrix view;

  void set(std::int64_t row, std::int64_t col, std::uint32_t bits) {
    const auto size = static_cast<std::int64_t>(element_bytes(view.type));
    const auto at = view.data - memory.data() + (row * view.row_stride + col * view.col_stride) * size;
    std::memcpy(memory.data() + at, &bits, static_cast<std::size_t>(size));
  }
};

enum class Layout { packed, padded, column_major, rows_upwards, columns_backwards, interleaved, odd_address };
inline constexpr std::array kLayouts = {
    Layout::packed,      Layout::padded,     Layout::column_major, Layout::rows_upwards, Layout::columns_backwards,
    Layout::interleaved, Layout::odd_address};

inline Matrix make_matrix(SourceType type, std::int64_t rows, std::int64_t cols, Layout layout = Layout::packed) {
  Matrix matrix = {{}, {nullptr, type, rows, cols, cols, 1}};
  auto& view = matrix.view;
  std::int64_t first = 0;  // the place of element (0, 0)
  switch (layout) {
    case Layout::packed:
    case Layout::odd_address: break;
    case Layout::padded: view.row_stride = cols + 5; break;
    case Layout::column_major: view.row_stride = 1, view.col_stride = rows; break;
    case Layout::rows_upwards: view.row_stride = -cols, first = (rows - 1) * cols; break;
    case Layout::columns_backwards: view.col_stride = -1, first = cols - 1; break;
    case Layout::interleaved: view.row_stride = 3 * cols, view.col_stride = 3; break;
  }
  const auto size = static_cast<std::int64_t>(element_bytes(type));
  matrix.memory.resize(static_cast<std::size_t>((3 * rows * cols + 5 * rows) * size + 1));
  view.data = matrix.memory.data() + first * size + (layout == Layout::odd_address ? 1 : 0);
  return matrix;
}

// Weight-like values of every exponent that occurs after scaling, with zeros, subnormals and a few extremes.
inline std::vector<std::uint32_t> random_bits(SourceType type, std::int64_t count, Random& random) {
  std::vector<std::uint32_t> bits(static_cast<std::size_t>(count));
  for (auto& value : bits) {
    const auto raw = static_cast<std::uint32_t>(random());
    const std::uint32_t exponent = pick(random, 0, 30) == 0 ? raw >> 8 & 0xFF : 110 + raw % 18;
    value = (raw & 0x807FFFFF) | (std::min(exponent, 253U) << 23);
    if (pick(random, 0, 40) == 0) value &= 0x80000000;
    if (type == SourceType::bf16) value >>= 16;
    if (type == SourceType::fp16) value = (raw >> 16) % 0x7C00 | (raw & 0x8000);
  }
  return bits;
}

inline Matrix random_matrix(SourceType type, std::int64_t rows, std::int64_t cols, Random& random,
                            Layout layout = Layout::packed) {
  auto matrix = make_matrix(type, rows, cols, layout);
  const auto bits = random_bits(type, rows * cols, random);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) {
      matrix.set(row, col, bits[static_cast<std::size_t>(row * cols + col)]);
    }
  }
  return matrix;
}

}  // namespace weightcast

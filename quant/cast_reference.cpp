#include "quant/cast_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/blocks.h"
#include "quant/digest_words.h"
#include "quant/numbers.h"

namespace weightcast::reference {
namespace {

template <class Bits>
Bits bits_at(const std::byte* memory) noexcept {
  Bits bits = 0;
  std::memcpy(&bits, memory, sizeof bits);  // sources need not be aligned
  return bits;
}

// Exact for every source type.
float value_at(const SourceMatrix& source, std::int64_t row, std::int64_t col) noexcept {
  const std::int64_t index = row * source.row_stride + col * source.col_stride;
  const std::byte* memory = source.data + index * static_cast<std::int64_t>(element_bytes(source.type));
  switch (source.type) {
    case SourceType::bf16: return float_of_bf16(bits_at<std::uint16_t>(memory));
    case SourceType::fp16: return float_of_fp16(bits_at<std::uint16_t>(memory));
    case SourceType::fp32: return std::bit_cast<float>(bits_at<std::uint32_t>(memory));
  }
  return 0;
}

template <class Bits>
void store(Bits bits, std::byte* output, std::int64_t col) noexcept {
  std::memcpy(output + col * static_cast<std::int64_t>(sizeof bits), &bits, sizeof bits);
}

// False when the value has no place in the recipe. `block_scale_inverse` is for recipes with scales only.
bool cast_value(float value, Recipe recipe, float block_scale_inverse, std::byte* output, std::int64_t col) noexcept {
  if (!is_finite(value)) return false;
  switch (recipe) {
    case Recipe::bf16: {
      const std::uint16_t rounded = bf16_of_float(value);
      store(rounded, output, col);
      return is_finite_bf16(rounded);
    }
    case Recipe::fp16: {
      const std::uint16_t rounded = fp16_of_float(value);
      store(rounded, output, col);
      return is_finite_fp16(rounded);
    }
    case Recipe::fp32: store(std::bit_cast<std::uint32_t>(value), output, col); return true;
    case Recipe::fp8_e4m3_128x128_fp32: {
      const std::uint16_t rounded = bf16_of_float(value);
      store(e4m3_of_float(float_of_bf16(rounded) * block_scale_inverse), output, col);
      return is_finite_bf16(rounded);
    }
  }
  return false;
}

}  // namespace

BadValue block_amax(const SourceMatrix& source, BlockOrigin origin, std::span<float> amax) noexcept {
  const BlockGrid grid(source, origin);
  std::fill_n(amax.begin(), grid.size(), 0.0F);
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t col = 0; col < source.cols; ++col) {
      const float value = value_at(source, row, col);
      if (!is_finite(value)) return {row, col};
      const std::uint16_t rounded = bf16_of_float(value);
      if (!is_finite_bf16(rounded)) return {row, col};
      float& block = amax[grid.index(row, col)];
      block = std::max(block, std::fabs(float_of_bf16(rounded)));
    }
  }
  return {};
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame) noexcept {
  const BlockGrid grid(source, origin);
  const auto row_bytes = static_cast<std::uint64_t>(source.cols) * element_bytes(recipe);
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    std::byte* const output_row = output + row * output_row_bytes;
    float inverse = 1;
    for (std::int64_t col = 0; col < source.cols; ++col) {
      if (has_scales(recipe) && grid.starts_block(col)) inverse = 1.0F / scale_of_amax(amax[grid.index(row, col)]);
      if (!cast_value(value_at(source, row, col), recipe, inverse, output_row, col)) return {.bad = {row, col}};
    }
    result.digest += digest_row(output_row, row_bytes, static_cast<std::uint64_t>(row), frame, mix_words);
  }
  return result;
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame) noexcept {
  const auto element = static_cast<std::int64_t>(element_bytes(source.type));
  const auto row_bytes = static_cast<std::uint64_t>(source.cols * element);
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t col = 0; col < source.cols; ++col) {
      if (!is_finite(value_at(source, row, col))) return {.bad = {row, col}};
    }
    const std::byte* memory = source.data + row * source.row_stride * element;
    result.digest += digest_row(memory, row_bytes, static_cast<std::uint64_t>(row), frame, mix_words);
  }
  return result;
}

}  // namespace weightcast::reference

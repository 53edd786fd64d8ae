#include "quant/cast_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/blocks.h"
#include "quant/digest_words.h"
#include "quant/numbers.h"
#include "quant/scales.h"

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

// A 4-bit code into its half of a byte: the left value of a pair first, into the low bits.
void store_half(std::uint8_t code, std::byte* output, std::int64_t col) noexcept {
  std::byte& pair = output[col / 2];
  pair = col % 2 == 0 ? std::byte{code} : pair | std::byte(code << 4);
}

// False when the value has no place in the recipe. `multiplier` is for recipes with scales.
bool cast_value(float value, Recipe recipe, float multiplier, std::byte* output, std::int64_t col) noexcept {
  if (!is_finite(value)) return false;
  if (recipe == Recipe::fp32) {
    store(std::bit_cast<std::uint32_t>(value), output, col);
    return true;
  }
  if (recipe == Recipe::fp16) {
    const std::uint16_t half = fp16_of_float(value);
    store(half, output, col);
    return is_finite_fp16(half);
  }
  const std::uint16_t rounded = bf16_of_float(value);
  if (recipe == Recipe::bf16) {
    store(rounded, output, col);
  } else if (recipe == Recipe::nvfp4_e2m1_1x16) {
    store_half(e2m1_of_float(float_of_bf16(rounded) * multiplier), output, col);
  } else {
    store(e4m3_of_float(float_of_bf16(rounded) * multiplier), output, col);
  }
  return is_finite_bf16(rounded);
}

}  // namespace

BadValue block_amax(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<float> amax) noexcept {
  const BlockGrid grid(source, origin, block_shape(recipe));
  std::fill(amax.begin(), amax.end(), 0.0F);
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
  if (has_tensor_scale(recipe)) {
    for (const float block : amax.first(grid.size())) amax.back() = std::max(amax.back(), block);
  }
  return {};
}

CastResult cast(const SourceMatrix& source, Recipe recipe, BlockOrigin origin, std::span<const float> amax,
                std::byte* output, std::int64_t output_row_bytes, const DigestFrame& frame) noexcept {
  const BlockGrid grid(source, origin, block_shape(recipe));
  const float tensor = has_tensor_scale(recipe) && !amax.empty() ? tensor_multiplier(amax.back()) : 0;
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    std::byte* const output_row = output + row * output_row_bytes;
    float multiplier = 1;
    for (std::int64_t col = 0; col < source.cols; ++col) {
      if (has_scales(recipe) && grid.starts_block(col)) {
        multiplier = block_scale(recipe, amax[grid.index(row, col)], tensor).multiplier;
      }
      if (!cast_value(value_at(source, row, col), recipe, multiplier, output_row, col)) return {.bad = {row, col}};
    }
    result.digest +=
        digest_row(output_row, row_bytes(recipe, source.cols), static_cast<std::uint64_t>(row), frame, mix_words);
  }
  return result;
}

CastResult inspect(const SourceMatrix& source, const DigestFrame& frame) noexcept {
  const auto element = static_cast<std::int64_t>(element_bytes(source.type));
  const auto bytes = static_cast<std::uint64_t>(source.cols * element);
  CastResult result;
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t col = 0; col < source.cols; ++col) {
      if (!is_finite(value_at(source, row, col))) return {.bad = {row, col}};
    }
    const std::byte* memory = source.data + row * source.row_stride * element;
    result.digest += digest_row(memory, bytes, static_cast<std::uint64_t>(row), frame, mix_words);
  }
  return result;
}

}  // namespace weightcast::reference

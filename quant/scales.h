// What the amax of a block makes of its scale and of its values: the arithmetic of recipe.h. Internal to quant/.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "quant/numbers.h"
#include "quant/recipe.h"

namespace weightcast {

struct BlockScale {
  float multiplier = 1;      // code = round(x * multiplier)
  float scale = 1;           // what a code of 1 stands for
  std::uint32_t stored = 0;  // its first scale_bytes(recipe) bytes are what an engine reads
};

// t of nvfp4_e2m1_1x16.
[[nodiscard]] constexpr float tensor_multiplier(float tensor_amax) noexcept {
  if (tensor_amax == 0) return 1;
  const float multiplier = 448.0F * 6.0F / tensor_amax;
  return multiplier < std::numeric_limits<float>::max() ? multiplier : std::numeric_limits<float>::max();
}

// The least power of two that is not below `value`, as an E8M0 exponent.
[[nodiscard]] constexpr std::uint32_t exponent_above(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t exponent = bits >> 23;
  const std::uint32_t mantissa = bits & 0x7FFFFF;
  if (exponent == 0) return mantissa > 0x400000 ? 1 : 0;  // E8M0 begins at 2^-127
  return exponent + (mantissa != 0 && exponent != 0xFE ? 1 : 0);
}

[[nodiscard]] constexpr float at_least(float value, float least) noexcept { return value > least ? value : least; }

[[nodiscard]] constexpr BlockScale with_fp32(float scale) noexcept {
  return {1.0F / scale, scale, std::bit_cast<std::uint32_t>(scale)};
}

// `tensor` is tensor_multiplier() of the tensor, for recipes with a tensor scale.
[[nodiscard]] constexpr BlockScale block_scale(Recipe recipe, float amax, float tensor) noexcept {
  constexpr float kInverseOfLargest = 1.0F / 448.0F;
  constexpr float kMax = std::numeric_limits<float>::max();
  switch (recipe) {
    case Recipe::bf16:
    case Recipe::fp16:
    case Recipe::fp32: return {};
    case Recipe::fp8_e4m3_128x128_fp32: return with_fp32(at_least(amax, 1e-10F) * kInverseOfLargest);
    case Recipe::fp8_e4m3_128x128_ue8m0: {
      const std::uint32_t exponent = exponent_above(at_least(amax, 1e-4F) * kInverseOfLargest);
      return with_fp32(std::bit_cast<float>(exponent << 23));
    }
    case Recipe::fp8_e4m3_tensor:
    case Recipe::fp8_e4m3_channel: return with_fp32(at_least(amax, 1e-10F) / 448.0F);
    case Recipe::mxfp8_e4m3_1x32: {
      const std::uint32_t exponent = exponent_above(amax * kInverseOfLargest);
      if (exponent == 0) return {1, 0x1p-127F, 0};
      return {std::bit_cast<float>((254 - exponent) << 23), std::bit_cast<float>(exponent << 23), exponent};
    }
    case Recipe::nvfp4_e2m1_1x16: {
      const std::uint8_t code = e4m3_of_float(amax * (tensor * (1.0F / 6.0F)));
      const float scale = float_of_e4m3(code) * (1.0F / tensor);
      const float multiplier = 1.0F / scale;
      return {multiplier < kMax ? multiplier : kMax, scale, code};
    }
    case Recipe::nvfp4_tensor_scale: {
      const float scale = 1.0F / tensor_multiplier(amax);
      return {tensor_multiplier(amax), scale, std::bit_cast<std::uint32_t>(scale)};
    }
  }
  return {};
}

}  // namespace weightcast

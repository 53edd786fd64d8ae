// Bit patterns of the number formats, in plain integer arithmetic: independent of rounding mode, of flush-to-zero and
// of the CPU. Internal to quant/.
#pragma once

#include <bit>
#include <cstdint>

namespace weightcast {

// `value` without its lowest `dropped` bits (1..31), rounded to nearest, ties to even.
[[nodiscard]] constexpr std::uint32_t drop_bits(std::uint32_t value, std::uint32_t dropped) noexcept {
  const std::uint32_t half = 1U << (dropped - 1);
  return (value + half - 1 + ((value >> dropped) & 1)) >> dropped;
}

// The magnitude of a float (sign bit clear, finite) in a format with `dropped` fewer mantissa bits whose smallest
// normal number has the float exponent field `least`. A value beyond the format gives a code beyond its largest.
[[nodiscard]] constexpr std::uint32_t narrow(std::uint32_t magnitude, std::uint32_t dropped,
                                             std::uint32_t least) noexcept {
  const std::uint32_t exponent = magnitude >> 23;
  if (exponent >= least) return drop_bits(magnitude - ((least - 1) << 23), dropped);
  const std::uint32_t subnormal_dropped = dropped + least - exponent;
  if (subnormal_dropped > 24) return 0;  // less than half of the smallest step
  return drop_bits((magnitude & 0x7FFFFF) | 0x800000, subnormal_dropped);
}

[[nodiscard]] constexpr float float_of_bf16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

[[nodiscard]] constexpr float float_of_fp16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1F;
  const std::uint32_t mantissa = bits & 0x3FF;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // exact: at most ten bits
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

// Inf when the value is beyond the format; NaN is not for these functions.
[[nodiscard]] constexpr std::uint16_t bf16_of_float(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000) | drop_bits(bits & 0x7FFFFFFF, 16));
}

[[nodiscard]] constexpr std::uint16_t fp16_of_float(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t code = narrow(bits & 0x7FFFFFFF, 13, 113);  // smallest normal 2^-14
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000) | (code < 0x7C00 ? code : 0x7C00));
}

// E4M3 without infinities: bias 7, smallest normal 2^-6, largest 448 (code 0x7E), saturating.
[[nodiscard]] constexpr std::uint8_t e4m3_of_float(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t code = narrow(bits & 0x7FFFFFFF, 20, 121);
  return static_cast<std::uint8_t>(((bits >> 24) & 0x80) | (code < 0x7E ? code : 0x7E));
}

[[nodiscard]] constexpr float float_of_e4m3(std::uint8_t code) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80) << 24;
  const std::uint32_t exponent = (code >> 3) & 0xF;
  const std::uint32_t mantissa = code & 7;
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

// E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign; bias 1, saturating.
[[nodiscard]] constexpr std::uint8_t e2m1_of_float(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t code = narrow(bits & 0x7FFFFFFF, 22, 127);
  return static_cast<std::uint8_t>(((bits >> 28) & 8) | (code < 7 ? code : 7));
}

[[nodiscard]] constexpr bool is_finite(float value) noexcept {
  return (std::bit_cast<std::uint32_t>(value) & 0x7F800000) != 0x7F800000;
}
[[nodiscard]] constexpr bool is_finite_bf16(std::uint16_t bits) noexcept { return (bits & 0x7F80) != 0x7F80; }
[[nodiscard]] constexpr bool is_finite_fp16(std::uint16_t bits) noexcept { return (bits & 0x7C00) != 0x7C00; }

}  // namespace weightcast

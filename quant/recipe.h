// Number formats. A recipe is a named, bit-exact rule from BF16 values to bytes; never just "fp8".
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace weightcast {

// What a trainer's shard holds.
enum class SourceType : std::uint8_t { bf16 = 0, fp16 = 1, fp32 = 2 };

// What a server's entry holds. Stable numbers: they travel in tables.
//
// x is the source value rounded to BF16 (nearest, ties to even), a = max |x| over a block; blocks are anchored at the
// checkpoint tensor's origin, and what lies outside the tensor counts as zero. Every operation is one in IEEE FP32;
// RNE_e4m3 saturates at 448, RNE_e2m1 at 6. Who else computes these bits is said in quant/README.md.
enum class Recipe : std::uint8_t {
  bf16 = 0,  // FP32 sources are rounded to nearest even; FP16 sources are widened to FP32 first
  fp16 = 1,  // rounded to nearest even; overflow is an error
  fp32 = 2,  // widened; exact
  // 128x128 blocks, FP32 scales: s = max(a, 1e-10) * fl(1/448);  code = RNE_e4m3(x * (1 / s))
  fp8_e4m3_128x128_fp32 = 3,
  // 128x128 blocks, FP32 scales that are powers of two: s = the least 2^e >= max(a, 1e-4) * fl(1/448);
  // code = RNE_e4m3(x * (1 / s))
  fp8_e4m3_128x128_ue8m0 = 4,
  // one FP32 scale for the tensor, or for each row: s = max(a, 1e-10) / 448;  code = RNE_e4m3(x * (1 / s))
  fp8_e4m3_tensor = 5,
  fp8_e4m3_channel = 6,
  // 1x32 blocks, one E8M0 byte e each: the least 2^(e - 127) >= a * fl(1/448);  code = RNE_e4m3(x * 2^(127 - e)), but
  // x itself where e = 0
  mxfp8_e4m3_1x32 = 7,
  // 1x16 blocks, one E4M3 byte q each, and one FP32 scale for the tensor: t = min(2688 / max |tensor|, FLT_MAX), or 1
  // for zeros;  q = RNE_e4m3(a * (t * fl(1/6)));  code = RNE_e2m1(x * min(1 / (q * (1 / t)), FLT_MAX)), two codes a
  // byte, the left one in the low bits. The tensor's scale is stored as 1 / t.
  nvfp4_e2m1_1x16 = 8,
  // No format of values: that FP32 scale by itself, as catalogs, plans and exchanges name it.
  nvfp4_tensor_scale = 9,
};
inline constexpr int kRecipeCount = 9;  // formats of values

inline constexpr std::int64_t kBlock = 128;  // edge of the blocks of fp8_e4m3_128x128_*

// How many rows and columns share a scale. No tensor is longer than kWholeAxis.
inline constexpr std::int64_t kWholeAxis = std::int64_t{1} << 40;
struct BlockShape {
  std::int64_t rows = kBlock;
  std::int64_t cols = kBlock;
};
[[nodiscard]] BlockShape block_shape(Recipe recipe) noexcept;  // of recipes with scales

[[nodiscard]] std::string_view to_string(SourceType type) noexcept;
[[nodiscard]] std::string_view to_string(Recipe recipe) noexcept;
[[nodiscard]] std::optional<SourceType> parse_source_type(std::string_view name) noexcept;
[[nodiscard]] std::optional<Recipe> parse_recipe(std::string_view name) noexcept;

[[nodiscard]] std::uint64_t element_bytes(SourceType type) noexcept;
// What is stored as one unit of element_bytes(): one value, of nvfp4_e2m1_1x16 two neighbours of a row.
[[nodiscard]] constexpr std::int64_t values_of_element(Recipe recipe) noexcept {
  return recipe == Recipe::nvfp4_e2m1_1x16 ? 2 : 1;
}
[[nodiscard]] std::uint64_t element_bytes(Recipe recipe) noexcept;
[[nodiscard]] std::uint64_t row_bytes(Recipe recipe, std::int64_t cols) noexcept;
// True when the recipe has a scale per block.
[[nodiscard]] bool has_scales(Recipe recipe) noexcept;
// Bytes of one block's scale: 4 for FP32, 1 for E8M0 and E4M3, 0 without scales.
[[nodiscard]] std::uint64_t scale_bytes(Recipe recipe) noexcept;
// True when blocks are scaled against the amax of the whole tensor, whose scale is nvfp4_tensor_scale.
[[nodiscard]] constexpr bool has_tensor_scale(Recipe recipe) noexcept { return recipe == Recipe::nvfp4_e2m1_1x16; }

[[nodiscard]] constexpr std::int64_t blocks_of(std::int64_t elements) noexcept {
  return (elements + kBlock - 1) / kBlock;
}

}  // namespace weightcast

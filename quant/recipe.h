// Number formats. A recipe is a named, bit-exact rule from BF16 values to bytes; never just "fp8".
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace weightcast {

// What a trainer's shard holds.
enum class SourceType : std::uint8_t { bf16 = 0, fp16 = 1, fp32 = 2 };

// What a server's entry holds. Stable numbers: they travel in tables.
enum class Recipe : std::uint8_t {
  bf16 = 0,  // FP32 sources are rounded to nearest even; FP16 sources are widened to FP32 first
  fp16 = 1,  // rounded to nearest even; overflow is an error
  fp32 = 2,  // widened; exact
  // E4M3 codes and one FP32 scale per 128x128 block, anchored at the checkpoint tensor's origin:
  //   a = max |x| over the block after rounding x to BF16, at least 1e-10
  //   scale = a * fl(1/448);  code = RNE_saturate(x * (1 / scale)), every operation in IEEE FP32
  // (the default of slime, verl and Miles on Hopper; DeepGEMM's per_block_cast_to_fp8 run on CUDA)
  fp8_e4m3_128x128_fp32 = 3,
};

inline constexpr std::int64_t kBlock = 128;  // edge of a quantisation block

[[nodiscard]] std::string_view to_string(SourceType type) noexcept;
[[nodiscard]] std::string_view to_string(Recipe recipe) noexcept;
[[nodiscard]] std::optional<SourceType> parse_source_type(std::string_view name) noexcept;
[[nodiscard]] std::optional<Recipe> parse_recipe(std::string_view name) noexcept;

[[nodiscard]] std::uint64_t element_bytes(SourceType type) noexcept;
[[nodiscard]] std::uint64_t element_bytes(Recipe recipe) noexcept;
// True when the recipe has a scale per block of kBlock x kBlock.
[[nodiscard]] bool has_scales(Recipe recipe) noexcept;

[[nodiscard]] constexpr std::int64_t blocks_of(std::int64_t elements) noexcept {
  return (elements + kBlock - 1) / kBlock;
}

}  // namespace weightcast

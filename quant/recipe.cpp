#include "quant/recipe.h"

#include <array>
#include <utility>

namespace weightcast {
namespace {

constexpr std::array<std::pair<SourceType, std::string_view>, 3> kSourceTypes = {{
    {SourceType::bf16, "bf16"},
    {SourceType::fp16, "fp16"},
    {SourceType::fp32, "fp32"},
}};
constexpr std::array<std::pair<Recipe, std::string_view>, kRecipeCount + 1> kRecipeNames = {{
    {Recipe::bf16, "bf16"},
    {Recipe::fp16, "fp16"},
    {Recipe::fp32, "fp32"},
    {Recipe::fp8_e4m3_128x128_fp32, "fp8_e4m3_128x128_fp32"},
    {Recipe::fp8_e4m3_128x128_ue8m0, "fp8_e4m3_128x128_ue8m0"},
    {Recipe::fp8_e4m3_tensor, "fp8_e4m3_tensor"},
    {Recipe::fp8_e4m3_channel, "fp8_e4m3_channel"},
    {Recipe::mxfp8_e4m3_1x32, "mxfp8_e4m3_1x32"},
    {Recipe::nvfp4_e2m1_1x16, "nvfp4_e2m1_1x16"},
    {Recipe::nvfp4_tensor_scale, "nvfp4_tensor_scale"},
}};

template <class Table, class Value>
std::string_view name_in(const Table& table, Value value) noexcept {
  for (const auto& [known, name] : table) {
    if (known == value) return name;
  }
  return "unknown";
}

}  // namespace

std::string_view to_string(SourceType type) noexcept { return name_in(kSourceTypes, type); }
std::string_view to_string(Recipe recipe) noexcept { return name_in(kRecipeNames, recipe); }

std::optional<SourceType> parse_source_type(std::string_view name) noexcept {
  for (const auto& [type, known] : kSourceTypes) {
    if (known == name) return type;
  }
  return std::nullopt;
}

std::optional<Recipe> parse_recipe(std::string_view name) noexcept {
  for (const auto& [recipe, known] : kRecipeNames) {
    if (known == name) return recipe;
  }
  return std::nullopt;
}

std::uint64_t element_bytes(SourceType type) noexcept { return type == SourceType::fp32 ? 4 : 2; }

BlockShape block_shape(Recipe recipe) noexcept {
  switch (recipe) {
    case Recipe::fp8_e4m3_tensor:
    case Recipe::nvfp4_tensor_scale: return {kWholeAxis, kWholeAxis};
    case Recipe::fp8_e4m3_channel: return {1, kWholeAxis};
    case Recipe::mxfp8_e4m3_1x32: return {1, 32};
    case Recipe::nvfp4_e2m1_1x16: return {1, 16};
    default: return {};
  }
}

std::uint64_t element_bytes(Recipe recipe) noexcept {
  switch (recipe) {
    case Recipe::bf16:
    case Recipe::fp16: return 2;
    case Recipe::fp32: return 4;
    case Recipe::fp8_e4m3_128x128_fp32:
    case Recipe::fp8_e4m3_128x128_ue8m0:
    case Recipe::fp8_e4m3_tensor:
    case Recipe::fp8_e4m3_channel:
    case Recipe::mxfp8_e4m3_1x32:
    case Recipe::nvfp4_e2m1_1x16: return 1;
    case Recipe::nvfp4_tensor_scale: return 0;
  }
  return 0;
}

std::uint64_t row_bytes(Recipe recipe, std::int64_t cols) noexcept {
  const std::int64_t values = values_of_element(recipe);
  return static_cast<std::uint64_t>((cols + values - 1) / values) * element_bytes(recipe);
}

bool has_scales(Recipe recipe) noexcept { return scale_bytes(recipe) != 0; }

std::uint64_t scale_bytes(Recipe recipe) noexcept {
  switch (recipe) {
    case Recipe::bf16:
    case Recipe::fp16:
    case Recipe::fp32: return 0;
    case Recipe::fp8_e4m3_128x128_fp32:
    case Recipe::fp8_e4m3_128x128_ue8m0:
    case Recipe::fp8_e4m3_tensor:
    case Recipe::fp8_e4m3_channel:
    case Recipe::nvfp4_tensor_scale: return 4;
    case Recipe::mxfp8_e4m3_1x32:
    case Recipe::nvfp4_e2m1_1x16: return 1;
  }
  return 0;
}

}  // namespace weightcast

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
constexpr std::array<std::pair<Recipe, std::string_view>, 4> kRecipes = {{
    {Recipe::bf16, "bf16"},
    {Recipe::fp16, "fp16"},
    {Recipe::fp32, "fp32"},
    {Recipe::fp8_e4m3_128x128_fp32, "fp8_e4m3_128x128_fp32"},
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
std::string_view to_string(Recipe recipe) noexcept { return name_in(kRecipes, recipe); }

std::optional<SourceType> parse_source_type(std::string_view name) noexcept {
  for (const auto& [type, known] : kSourceTypes) {
    if (known == name) return type;
  }
  return std::nullopt;
}

std::optional<Recipe> parse_recipe(std::string_view name) noexcept {
  for (const auto& [recipe, known] : kRecipes) {
    if (known == name) return recipe;
  }
  return std::nullopt;
}

std::uint64_t element_bytes(SourceType type) noexcept { return type == SourceType::fp32 ? 4 : 2; }

std::uint64_t element_bytes(Recipe recipe) noexcept {
  switch (recipe) {
    case Recipe::bf16:
    case Recipe::fp16: return 2;
    case Recipe::fp32: return 4;
    case Recipe::fp8_e4m3_128x128_fp32: return 1;
  }
  return 0;
}

bool has_scales(Recipe recipe) noexcept { return recipe == Recipe::fp8_e4m3_128x128_fp32; }

}  // namespace weightcast

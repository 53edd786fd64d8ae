// Boxes of quantisation blocks. A block is kBlock x kBlock elements of the last two axes (1 x kBlock of a vector),
// one index of every outer axis; block coordinates have the tensor's axes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"

namespace weightcast {

// True when plans can carry the recipe: it has no scales, or FP32 ones of kBlock x kBlock.
[[nodiscard]] bool is_planned(Recipe recipe) noexcept;
// "bf16, fp16, ...": those.
[[nodiscard]] std::string planned_recipes();

// The blocks that `box` touches.
[[nodiscard]] Box blocks_touched(const Box& box) noexcept;
// The tensor's grid of blocks, as a shape.
[[nodiscard]] std::vector<std::int64_t> block_grid(const std::vector<std::int64_t>& shape);
// True when some block of the tensor lies partly inside and partly outside `box`.
[[nodiscard]] bool cuts_blocks(const Box& box, const std::vector<std::int64_t>& shape) noexcept;

}  // namespace weightcast

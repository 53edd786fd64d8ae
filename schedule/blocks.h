// Boxes of quantisation blocks. A block is block_shape(recipe) of the last two axes (one row of it of a vector) and one
// index of every outer axis; block coordinates have the tensor's axes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"

namespace weightcast {

// True when plans can carry the recipe: one without scales, or with one scale per block.
[[nodiscard]] bool is_planned(Recipe recipe) noexcept;
// "bf16, fp16, ...": those.
[[nodiscard]] std::string planned_recipes();

// How many indexes of an axis share a scale; kWholeAxis where blocks span it.
[[nodiscard]] std::int64_t block_edge(Recipe recipe, std::size_t axes, std::size_t axis) noexcept;
// True when a block spans a whole axis: its scale is known when all of it has been read, wherever that is cut.
[[nodiscard]] bool spans_an_axis(Recipe recipe) noexcept;
// "blocks of 128x128", for messages.
[[nodiscard]] std::string blocks_text(Recipe recipe);

// The blocks that `box` touches.
[[nodiscard]] Box blocks_touched(const Box& box, Recipe recipe) noexcept;
// The tensor's grid of blocks, as a shape.
[[nodiscard]] std::vector<std::int64_t> block_grid(const std::vector<std::int64_t>& shape, Recipe recipe);
// True when some block of the tensor lies partly inside and partly outside `box`.
[[nodiscard]] bool cuts_blocks(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) noexcept;
// Whether a server can compute with `box` under the recipe: it cuts no block, but where blocks span an axis, which
// every holder of a part gets the scale of.
[[nodiscard]] bool is_servable(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) noexcept;

}  // namespace weightcast

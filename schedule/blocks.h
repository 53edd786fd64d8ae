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

// Whether values can be held under it; nvfp4_tensor_scale is of scales only.
[[nodiscard]] bool is_of_values(Recipe recipe) noexcept;
// "bf16, fp16, ...": those.
[[nodiscard]] std::string recipes_of_values();

// Of values: the box, or matrix, in stored elements, so many of which are row_bytes(): of nvfp4_e2m1_1x16 half as many
// columns, which begin and end at whole blocks. Strides of memory are between stored elements.
[[nodiscard]] Box stored_box(Box box, Recipe recipe) noexcept;
[[nodiscard]] MatrixView stored_view(MatrixView view, int axes, Recipe recipe) noexcept;
[[nodiscard]] std::uint64_t value_bytes(const Box& box, Recipe recipe) noexcept;

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
// every holder of a part gets the scale of. Rows of nvfp4_e2m1_1x16 are whole blocks, without a ragged one at the end:
// so its bytes are whole, and the words of digests.
[[nodiscard]] bool is_servable(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) noexcept;

}  // namespace weightcast

// Boxes of quantisation blocks. A block is kBlock x kBlock elements of the last two axes (1 x kBlock of a vector),
// one index of every outer axis; block coordinates have the tensor's axes.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/box.h"

namespace weightcast {

// The blocks that `box` touches.
[[nodiscard]] Box blocks_touched(const Box& box) noexcept;
// The tensor's grid of blocks, as a shape.
[[nodiscard]] std::vector<std::int64_t> block_grid(const std::vector<std::int64_t>& shape);
// True when some block of the tensor lies partly inside and partly outside `box`.
[[nodiscard]] bool cuts_blocks(const Box& box, const std::vector<std::int64_t>& shape) noexcept;

}  // namespace weightcast

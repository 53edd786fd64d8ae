// Blocks of a quantised tensor as boxes of their own: where in a row-major grid the blocks of a matrix stand.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "quant/cast.h"
#include "schedule/blocks.h"
#include "schedule/box.h"

namespace weightcast {

// The matrix of blocks that a matrix of elements touches, in the block coordinates of the same tensor.
[[nodiscard]] inline Box blocks_touched_by(const MatrixView& view, int axes, Recipe recipe) {
  Box box;
  box.axes = static_cast<std::uint8_t>(axes);
  box.offset = view.origin;
  box.extent.fill(1);
  const auto last = static_cast<std::size_t>(axes - 1);
  box.extent[last] = view.cols;
  if (axes > 1) box.extent[last - 1] = view.rows;
  return blocks_touched(box, recipe);
}

[[nodiscard]] inline std::size_t index_in(const Box& grid, const std::array<std::int64_t, kMaxAxes>& at) {
  std::int64_t index = 0;
  for (std::size_t axis = 0; axis < grid.axes; ++axis) index = index * grid.extent[axis] + at[axis] - grid.offset[axis];
  return static_cast<std::size_t>(index);
}

// visit(index in the grid, running index) for each block of `blocks`, row-major.
template <class Visit>
void for_each_block(const Box& blocks, const Box& grid, Visit&& visit) {
  std::size_t running = 0;
  for_each_matrix(blocks, grid, [&](const MatrixView& view) {
    auto at = view.origin;
    const auto last = static_cast<std::size_t>(blocks.axes - 1);
    for (std::int64_t row = 0; row < view.rows; ++row) {
      if (blocks.axes > 1) at[last - 1] = view.origin[last - 1] + row;
      const std::size_t start = index_in(grid, at);
      for (std::int64_t col = 0; col < view.cols; ++col) visit(start + static_cast<std::size_t>(col), running++);
    }
  });
}

[[nodiscard]] inline BlockOrigin block_origin(const MatrixView& view, int axes) {
  const auto last = static_cast<std::size_t>(axes - 1);
  return {axes > 1 ? view.origin[last - 1] : 0, view.origin[last]};
}

}  // namespace weightcast

#include "schedule/blocks.h"

#include <algorithm>

namespace weightcast {
namespace {

// Blocks have an edge on the last two axes only.
std::size_t first_blocked_axis(std::size_t axes) noexcept { return axes > 2 ? axes - 2 : 0; }

}  // namespace

bool is_planned(Recipe recipe) noexcept {
  const BlockShape shape = block_shape(recipe);
  return !has_scales(recipe) || (shape.rows == kBlock && shape.cols == kBlock && scale_bytes(recipe) == sizeof(float));
}

std::string planned_recipes() {
  std::string names;
  for (int number = 0; number < kRecipeCount; ++number) {
    const auto recipe = static_cast<Recipe>(number);
    if (is_planned(recipe)) names.append(names.empty() ? "" : ", ").append(to_string(recipe));
  }
  return names;
}

Box blocks_touched(const Box& box) noexcept {
  Box blocks = box;
  for (std::size_t axis = first_blocked_axis(box.axes); axis < box.axes; ++axis) {
    const auto end = blocks_of(box.offset[axis] + box.extent[axis]);
    blocks.offset[axis] = box.offset[axis] / kBlock;
    blocks.extent[axis] = end - blocks.offset[axis];
  }
  return blocks;
}

std::vector<std::int64_t> block_grid(const std::vector<std::int64_t>& shape) {
  auto grid = shape;
  for (std::size_t axis = first_blocked_axis(shape.size()); axis < shape.size(); ++axis) {
    grid[axis] = blocks_of(shape[axis]);
  }
  return grid;
}

bool cuts_blocks(const Box& box, const std::vector<std::int64_t>& shape) noexcept {
  for (std::size_t axis = first_blocked_axis(box.axes); axis < box.axes; ++axis) {
    const auto end = box.offset[axis] + box.extent[axis];
    if (box.offset[axis] % kBlock != 0 || (end % kBlock != 0 && end != shape[axis])) return true;
  }
  return false;
}

}  // namespace weightcast

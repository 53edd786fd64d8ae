#include "schedule/blocks.h"

#include <fmt/format.h>

namespace weightcast {
namespace {

bool cuts_axis(const Box& box, std::int64_t length, std::size_t axis, std::int64_t edge) noexcept {
  const auto end = box.offset[axis] + box.extent[axis];
  return box.offset[axis] % edge != 0 || (end % edge != 0 && end != length);
}

}  // namespace

// The second scale of nvfp4, of the tensor, has no place in catalogs yet.
bool is_planned(Recipe recipe) noexcept { return !has_tensor_scale(recipe); }

std::string planned_recipes() {
  std::string names;
  for (int number = 0; number < kRecipeCount; ++number) {
    const auto recipe = static_cast<Recipe>(number);
    if (is_planned(recipe)) names.append(names.empty() ? "" : ", ").append(to_string(recipe));
  }
  return names;
}

std::int64_t block_edge(Recipe recipe, std::size_t axes, std::size_t axis) noexcept {
  const BlockShape shape = block_shape(recipe);
  if (axis + 1 == axes) return shape.cols;
  return axis + 2 == axes ? shape.rows : 1;
}

bool spans_an_axis(Recipe recipe) noexcept { return has_scales(recipe) && block_shape(recipe).cols == kWholeAxis; }

std::string blocks_text(Recipe recipe) {
  const BlockShape shape = block_shape(recipe);
  if (shape.cols != kWholeAxis) return fmt::format("blocks of {}x{}", shape.rows, shape.cols);
  return shape.rows == kWholeAxis ? "one block, the whole matrix" : "blocks of one row";
}

Box blocks_touched(const Box& box, Recipe recipe) noexcept {
  Box blocks = box;
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto edge = block_edge(recipe, box.axes, axis);
    blocks.offset[axis] = box.offset[axis] / edge;
    blocks.extent[axis] = (box.offset[axis] + box.extent[axis] + edge - 1) / edge - blocks.offset[axis];
  }
  return blocks;
}

std::vector<std::int64_t> block_grid(const std::vector<std::int64_t>& shape, Recipe recipe) {
  auto grid = shape;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    const auto edge = block_edge(recipe, shape.size(), axis);
    grid[axis] = (shape[axis] + edge - 1) / edge;
  }
  return grid;
}

bool cuts_blocks(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) noexcept {
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    if (cuts_axis(box, shape[axis], axis, block_edge(recipe, box.axes, axis))) return true;
  }
  return false;
}

bool is_servable(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) noexcept {
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto edge = block_edge(recipe, box.axes, axis);
    if (edge != kWholeAxis && cuts_axis(box, shape[axis], axis, edge)) return false;
  }
  return true;
}

}  // namespace weightcast

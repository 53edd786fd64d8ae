#include "schedule/blocks.h"

#include <fmt/format.h>

namespace weightcast {
namespace {

bool cuts_axis(const Box& box, std::int64_t length, std::size_t axis, std::int64_t edge) noexcept {
  const auto end = box.offset[axis] + box.extent[axis];
  return box.offset[axis] % edge != 0 || (end % edge != 0 && end != length);
}

}  // namespace

bool is_of_values(Recipe recipe) noexcept { return static_cast<int>(recipe) < kRecipeCount; }

std::string recipes_of_values() {
  std::string names;
  for (int number = 0; number < kRecipeCount; ++number) {
    names.append(names.empty() ? "" : ", ").append(to_string(static_cast<Recipe>(number)));
  }
  return names;
}

Box stored_box(Box box, Recipe recipe) noexcept {
  const auto last = static_cast<std::size_t>(box.axes - 1);
  box.offset[last] /= values_of_element(recipe);
  box.extent[last] /= values_of_element(recipe);
  return box;
}

MatrixView stored_view(MatrixView view, int axes, Recipe recipe) noexcept {
  const std::int64_t values = values_of_element(recipe);
  view.origin[static_cast<std::size_t>(axes - 1)] /= values;
  view.cols /= values;
  view.col /= values;
  return view;
}

std::uint64_t value_bytes(const Box& box, Recipe recipe) noexcept {
  return static_cast<std::uint64_t>(elements(stored_box(box, recipe))) * element_bytes(recipe);
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
  return values_of_element(recipe) == 1 || shape.back() % block_shape(recipe).cols == 0;
}

}  // namespace weightcast

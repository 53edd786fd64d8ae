#include "schedule/proof_geometry.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "quant/recipe.h"

namespace weightcast::proof {

std::int64_t edge_of(Recipe recipe, int axes, int axis) noexcept {
  switch (axes - 1 - axis) {
    case 0: return block_shape(recipe).cols;
    case 1: return block_shape(recipe).rows;
    default: return 1;
  }
}

Box blocks_meeting(const Box& box, Recipe recipe) noexcept {
  Box blocks;
  blocks.axes = box.axes;
  for (int axis = 0; axis < box.axes; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    const auto edge = edge_of(recipe, box.axes, axis);
    blocks.offset[a] = box.offset[a] / edge;
    blocks.extent[a] = (box.offset[a] + box.extent[a] + edge - 1) / edge - blocks.offset[a];
  }
  return blocks;
}

std::uint64_t bytes_of(const Box& box, Recipe recipe) noexcept {
  return static_cast<std::uint64_t>(elements(box) / values_of_element(recipe)) * element_bytes(recipe);
}

bool is_of_whole_bytes(const Box& box, Recipe recipe) noexcept {
  if (values_of_element(recipe) == 1) return true;
  const auto last = static_cast<std::size_t>(box.axes - 1);
  return box.offset[last] % block_shape(recipe).cols == 0 && box.extent[last] % block_shape(recipe).cols == 0;
}

void subtract(std::vector<Box>& boxes, const Box& part) {
  std::vector<Box> left;
  for (Box box : boxes) {
    const auto common = intersect(box, part);
    if (!common) {
      left.push_back(box);
      continue;
    }
    // Peel off what lies before and after `common`, axis by axis; what remains of `box` is `common` itself.
    for (std::size_t axis = 0; axis < box.axes; ++axis) {
      const auto common_end = common->offset[axis] + common->extent[axis];
      const auto end = box.offset[axis] + box.extent[axis];
      Box before = box;
      before.extent[axis] = common->offset[axis] - box.offset[axis];
      if (before.extent[axis] > 0) left.push_back(before);
      Box after = box;
      after.offset[axis] = common_end;
      after.extent[axis] = end - common_end;
      if (after.extent[axis] > 0) left.push_back(after);
      box.offset[axis] = common->offset[axis];
      box.extent[axis] = common->extent[axis];
    }
  }
  boxes.swap(left);
}

namespace {

// How many indexes of an axis one step of its stride is for.
std::int64_t indexes_of_stride(const Entry& entry, std::size_t axis) {
  return axis + 1U == entry.box.axes && !entry.is_scales ? values_of_element(entry.recipe) : 1;
}

// A box as runs of equal length along the axes that are left when contiguous ones have merged into the run.
struct Runs {
  std::int64_t first = 0;
  std::int64_t bytes = 0;
  std::array<Axis, kMaxAxes> axes{};
  std::size_t walked = 0;  // how many of `axes`
};

Runs merged(const Entry& entry, const Box& box, std::uint64_t element_bytes) {
  Runs runs;
  runs.first = static_cast<std::int64_t>(entry.byte_offset);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto together = indexes_of_stride(entry, axis);
    runs.first += (box.offset[axis] - entry.box.offset[axis]) / together * entry.strides_bytes[axis];
    if (box.extent[axis] / together < 2) continue;
    const Axis added = axis_of(entry, box, axis);
    auto at = runs.walked++;  // insertion sort by stride
    for (; at > 0 && runs.axes[at - 1].stride > added.stride; --at) runs.axes[at] = runs.axes[at - 1];
    runs.axes[at] = added;
  }
  runs.bytes = static_cast<std::int64_t>(element_bytes);
  auto rest = runs.axes.begin();
  const auto end = rest + static_cast<std::ptrdiff_t>(runs.walked);
  while (rest != end && rest->stride == runs.bytes) runs.bytes *= (rest++)->extent;
  runs.walked = static_cast<std::size_t>(std::copy(rest, end, runs.axes.begin()) - runs.axes.begin());
  return runs;
}

}  // namespace

Axis axis_of(const Entry& entry, const Box& box, std::size_t axis) noexcept {
  return {entry.strides_bytes[axis], box.extent[axis] / indexes_of_stride(entry, axis)};
}

std::vector<Run> runs_of(const Entry& entry, const Box& box, std::uint64_t element_bytes) {
  const auto shape = merged(entry, box, element_bytes);
  std::vector<Run> runs;
  std::array<std::int64_t, kMaxAxes> index{};
  for (std::int64_t at = shape.first;;) {
    runs.push_back({static_cast<std::uint64_t>(at), static_cast<std::uint64_t>(at + shape.bytes)});
    std::size_t axis = 0;
    for (; axis < shape.walked; ++axis) {
      at += shape.axes[axis].stride;
      if (++index[axis] < shape.axes[axis].extent) break;
      at -= shape.axes[axis].stride * shape.axes[axis].extent;
      index[axis] = 0;
    }
    if (axis == shape.walked) return runs;
  }
}

std::uint64_t count_runs(const Entry& entry, const Box& box, std::uint64_t element_bytes) {
  const auto shape = merged(entry, box, element_bytes);
  std::uint64_t count = 1;
  for (std::size_t axis = 0; axis < shape.walked; ++axis) count *= static_cast<std::uint64_t>(shape.axes[axis].extent);
  return count;
}

bool fits(const Entry& entry, std::uint64_t element_bytes, std::uint64_t region_bytes) noexcept {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62;
  if (region_bytes > kMost || entry.byte_offset > region_bytes) return false;
  std::int64_t total = static_cast<std::int64_t>(element_bytes);
  auto low = static_cast<std::int64_t>(entry.byte_offset);
  auto high = low;
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    std::int64_t reach = 0;
    const auto [stride, extent] = axis_of(entry, entry.box, axis);
    if (extent < 1 || __builtin_mul_overflow(total, extent, &total) ||
        __builtin_mul_overflow(extent - 1, stride, &reach) ||
        __builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high)) {
      return false;
    }
  }
  const auto region = static_cast<std::int64_t>(region_bytes);
  return total <= region && low >= 0 && high <= region - static_cast<std::int64_t>(element_bytes);
}

}  // namespace weightcast::proof

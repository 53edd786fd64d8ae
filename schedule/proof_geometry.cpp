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

struct Axis {
  std::int64_t stride = 0;
  std::int64_t extent = 1;
};

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
    runs.first += (box.offset[axis] - entry.box.offset[axis]) * entry.strides_bytes[axis];
    if (box.extent[axis] < 2) continue;
    const Axis added{entry.strides_bytes[axis], box.extent[axis]};
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
    if (entry.box.extent[axis] < 1 || __builtin_mul_overflow(total, entry.box.extent[axis], &total) ||
        __builtin_mul_overflow(entry.box.extent[axis] - 1, entry.strides_bytes[axis], &reach) ||
        __builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high)) {
      return false;
    }
  }
  const auto region = static_cast<std::int64_t>(region_bytes);
  return total <= region && low >= 0 && high <= region - static_cast<std::int64_t>(element_bytes);
}

}  // namespace weightcast::proof

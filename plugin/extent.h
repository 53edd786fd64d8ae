// Where a box of a tensor stands in memory, and how its bytes are counted in the digest: the arithmetic that sender
// and receiver must share to mean the same bytes.
#pragma once

#include <cstdint>

#include "quant/digest.h"
#include "schedule/box.h"
#include "schedule/catalog.h"

namespace weightcast {

// Boxes, views and elements are stored ones here: schedule/blocks.h.

// Bytes from the first element of `frame` to the element at `origin`.
[[nodiscard]] inline std::uint64_t offset_in_frame(const Box& frame, const std::array<std::int64_t, kMaxAxes>& strides,
                                                   const std::array<std::int64_t, kMaxAxes>& origin) noexcept {
  std::int64_t offset = 0;
  for (std::size_t axis = 0; axis < frame.axes; ++axis) offset += (origin[axis] - frame.offset[axis]) * strides[axis];
  return static_cast<std::uint64_t>(offset);
}

// Of a matrix of `frame` (view.row and view.col count in it), whose elements are `element` bytes.
[[nodiscard]] inline DigestFrame digest_frame(Digest seed, const Box& frame, const MatrixView& view,
                                              std::uint64_t element) noexcept {
  const auto columns = static_cast<std::uint64_t>(frame.extent[static_cast<std::size_t>(frame.axes - 1)]);
  return {seed, (columns * element + 7) / 8, static_cast<std::uint64_t>(view.row),
          static_cast<std::uint64_t>(view.col) * element};
}

// The stride between the rows of a box's matrices; a box of one axis has one row.
[[nodiscard]] inline std::int64_t row_stride(const std::array<std::int64_t, kMaxAxes>& strides, int axes) noexcept {
  return axes > 1 ? strides[static_cast<std::size_t>(axes - 2)] : 0;
}

}  // namespace weightcast

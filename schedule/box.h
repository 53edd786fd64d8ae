// Boxes: offset and extent per axis. All of planning is intersecting them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace weightcast {

inline constexpr int kMaxAxes = 5;

// Up to kMaxAxes axes, outermost first. A scalar is a box of one axis and extent 1.
struct Box {
  std::uint8_t axes = 0;
  std::array<std::int64_t, kMaxAxes> offset{};
  std::array<std::int64_t, kMaxAxes> extent{};

  friend bool operator==(const Box&, const Box&) = default;
  friend auto operator<=>(const Box&, const Box&) = default;
};

// The whole of a tensor of this shape.
[[nodiscard]] Box whole(std::span<const std::int64_t> shape);
[[nodiscard]] std::int64_t elements(const Box& box) noexcept;
// Nothing when they share no element. Both have the same number of axes.
[[nodiscard]] std::optional<Box> intersect(const Box& a, const Box& b) noexcept;
[[nodiscard]] bool contains(const Box& outer, const Box& inner) noexcept;
// "[0:144, 0:576]"
[[nodiscard]] std::string to_string(const Box& box);

// A box as matrices: the last axis is the columns, the one before it the rows, the outer axes are walked
// (one axis: one row). `row` is the matrix's first row, counted row-major over all but the last axis of `frame`,
// which contains `box`; `col` its first column in `frame`.
struct MatrixView {
  std::array<std::int64_t, kMaxAxes> origin{};  // of the matrix's first element, in the tensor
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row = 0;
  std::int64_t col = 0;
};
// Calls visit(const MatrixView&) for each matrix of `box`, in row-major order.
template <class Visit>
void for_each_matrix(const Box& box, const Box& frame, Visit&& visit) {
  const int last = box.axes - 1;
  const int outer_axes = box.axes > 2 ? box.axes - 2 : 0;
  MatrixView view;
  view.origin = box.offset;
  view.rows = box.axes > 1 ? box.extent[static_cast<std::size_t>(last - 1)] : 1;
  view.cols = box.extent[static_cast<std::size_t>(last)];
  view.col = box.offset[static_cast<std::size_t>(last)] - frame.offset[static_cast<std::size_t>(last)];
  if (elements(box) == 0) return;
  while (true) {
    view.row = 0;
    for (int axis = 0; axis < last; ++axis) {
      const auto a = static_cast<std::size_t>(axis);
      view.row = view.row * frame.extent[a] + view.origin[a] - frame.offset[a];
    }
    visit(static_cast<const MatrixView&>(view));
    int axis = outer_axes - 1;
    for (; axis >= 0; --axis) {
      const auto a = static_cast<std::size_t>(axis);
      if (++view.origin[a] < box.offset[a] + box.extent[a]) break;
      view.origin[a] = box.offset[a];
    }
    if (axis < 0) return;
  }
}

}  // namespace weightcast

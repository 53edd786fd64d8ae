// Box arithmetic on any two boxes of a bounded frame: what it says of the intersection is true of its elements.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "schedule/box.h"

namespace {

using namespace weightcast;

constexpr std::int64_t kEdge = 8;

Box take_box(const std::uint8_t*& next, std::uint8_t axes) {
  Box box;
  box.axes = axes;
  for (std::size_t axis = 0; axis < axes; ++axis) {
    box.offset[axis] = *next++ % kEdge;
    box.extent[axis] = 1 + *next++ % (kEdge - box.offset[axis]);
  }
  return box;
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t input_bytes) {
  if (input_bytes < 1 + 4 * kMaxAxes) return 0;
  const auto axes = static_cast<std::uint8_t>(1 + *input++ % kMaxAxes);
  const Box a = take_box(input, axes);
  const Box b = take_box(input, axes);
  Box frame;
  frame.axes = axes;
  std::fill_n(frame.extent.begin(), axes, kEdge);

  const auto common = intersect(a, b);
  require(common == intersect(b, a));
  if (!common) return 0;
  require(contains(a, *common) && contains(b, *common) && contains(frame, *common));
  std::int64_t visited = 0;
  for_each_matrix(*common, frame, [&](const MatrixView& view) { visited += view.rows * view.cols; });
  require(visited == elements(*common));
  return 0;
}

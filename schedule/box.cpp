#include "schedule/box.h"

#include <fmt/format.h>

#include <algorithm>

#include "transport/base/status.h"

namespace weightcast {

Box whole(std::span<const std::int64_t> shape) {
  if (shape.empty()) return whole(std::array<std::int64_t, 1>{1});
  if (shape.size() > kMaxAxes) {
    throw Error(Code::invalid_argument,
                fmt::format("a tensor has {} axes, at most {} are supported", shape.size(), kMaxAxes));
  }
  Box box;
  box.axes = static_cast<std::uint8_t>(shape.size());
  std::copy(shape.begin(), shape.end(), box.extent.begin());
  return box;
}

std::int64_t elements(const Box& box) noexcept {
  std::int64_t count = 1;
  for (std::size_t axis = 0; axis < box.axes; ++axis) count *= box.extent[axis];
  return count;
}

std::optional<Box> intersect(const Box& a, const Box& b) noexcept {
  Box common;
  common.axes = a.axes;
  for (std::size_t axis = 0; axis < a.axes; ++axis) {
    const auto begin = std::max(a.offset[axis], b.offset[axis]);
    const auto end = std::min(a.offset[axis] + a.extent[axis], b.offset[axis] + b.extent[axis]);
    if (begin >= end) return std::nullopt;
    common.offset[axis] = begin;
    common.extent[axis] = end - begin;
  }
  return common;
}

bool contains(const Box& outer, const Box& inner) noexcept {
  for (std::size_t axis = 0; axis < outer.axes; ++axis) {
    if (inner.offset[axis] < outer.offset[axis]) return false;
    if (inner.offset[axis] + inner.extent[axis] > outer.offset[axis] + outer.extent[axis]) return false;
  }
  return true;
}

std::string to_string(const Box& box) {
  std::string text = "[";
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    text += fmt::format("{}{}:{}", axis == 0 ? "" : ", ", box.offset[axis], box.offset[axis] + box.extent[axis]);
  }
  return text + "]";
}

}  // namespace weightcast

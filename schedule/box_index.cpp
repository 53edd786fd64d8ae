#include "schedule/box_index.h"

#include <tuple>
#include <utility>

namespace weightcast {
namespace {

std::size_t distinct_offsets(const std::vector<Box>& boxes, std::size_t axis) {
  std::vector<std::int64_t> offsets;
  offsets.reserve(boxes.size());
  for (const auto& box : boxes) offsets.push_back(box.offset[axis]);
  std::sort(offsets.begin(), offsets.end());
  return static_cast<std::size_t>(std::unique(offsets.begin(), offsets.end()) - offsets.begin());
}

}  // namespace

BoxIndex::BoxIndex(std::vector<Box> boxes) : boxes_(std::move(boxes)) {
  std::size_t most = 0;
  for (std::size_t axis = 0; !boxes_.empty() && axis < boxes_.front().axes; ++axis) {
    const auto distinct = boxes_.size() == 1 ? 1 : distinct_offsets(boxes_, axis);
    if (distinct <= most) continue;
    most = distinct;
    axis_ = axis;
  }
  order_.reserve(boxes_.size());
  for (std::size_t i = 0; i < boxes_.size(); ++i) {
    order_.push_back({boxes_[i].offset[axis_], boxes_[i].offset[axis_] + boxes_[i].extent[axis_], i});
  }
  std::sort(order_.begin(), order_.end(),
            [](const Item& a, const Item& b) { return std::tie(a.begin, a.box) < std::tie(b.begin, b.box); });
  for (std::size_t i = 1; i < order_.size(); ++i) order_[i].reach = std::max(order_[i].reach, order_[i - 1].reach);
}

}  // namespace weightcast

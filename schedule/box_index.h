// Many boxes of one tensor, to be asked which of them a box meets. For the .cpp files of this folder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "schedule/box.h"

namespace weightcast {

// Sorted along the axis on which the boxes differ most, so shards along any one axis are found in O(log n + found).
class BoxIndex {
 public:
  explicit BoxIndex(std::vector<Box> boxes);

  // Calls visit(position in `boxes`, common part) for each box that shares an element with `box`.
  template <class Visit>
  void visit(const Box& box, Visit&& visit) const {
    const auto begin = box.offset[axis_];
    const auto end = begin + box.extent[axis_];
    const auto first =
        std::partition_point(order_.begin(), order_.end(), [&](const Item& i) { return i.reach <= begin; });
    for (auto item = first; item != order_.end() && item->begin < end; ++item) {
      if (const auto common = intersect(boxes_[item->box], box)) visit(item->box, *common);
    }
  }

 private:
  struct Item {
    std::int64_t begin = 0;
    std::int64_t reach = 0;  // the furthest end of this and all earlier boxes
    std::size_t box = 0;
  };

  std::vector<Box> boxes_;
  std::size_t axis_ = 0;
  std::vector<Item> order_;
};

}  // namespace weightcast

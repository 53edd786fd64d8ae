// Geometry of the proof: blocks, coverage and physical runs of bytes. For proof*.cpp and explain.cpp; the planner has
// its own, so that an error in one of them shows.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/box.h"
#include "schedule/catalog.h"

namespace weightcast::proof {

// Blocks have edges on the last two axes (one axis: a row of a block on the last); along outer axes each index has its
// own.
[[nodiscard]] std::int64_t edge_of(Recipe recipe, int axes, int axis) noexcept;
// Block coordinates of every block that `box` meets.
[[nodiscard]] Box blocks_meeting(const Box& box, Recipe recipe) noexcept;

// Of values in a box. Exact where it is_of_whole_bytes().
[[nodiscard]] std::uint64_t bytes_of(const Box& box, Recipe recipe) noexcept;
// False where a row begins or ends inside a block whose values share bytes.
[[nodiscard]] bool is_of_whole_bytes(const Box& box, Recipe recipe) noexcept;

// Removes the elements of `part` from a set of disjoint boxes. Empty afterwards: the parts covered everything.
void subtract(std::vector<Box>& boxes, const Box& part);

// A contiguous run of bytes of a region.
struct Run {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
// The bytes of `box` (inside entry.box) in the entry's region, as few runs as the strides allow, in no order.
// The entry lies within its region, which has been checked.
[[nodiscard]] std::vector<Run> runs_of(const Entry& entry, const Box& box, std::uint64_t element_bytes);
[[nodiscard]] std::uint64_t count_runs(const Entry& entry, const Box& box, std::uint64_t element_bytes);

// The axes of an entry in memory: how far apart its stored elements are, and how many.
struct Axis {
  std::int64_t stride = 0;
  std::int64_t extent = 1;
};
[[nodiscard]] Axis axis_of(const Entry& entry, const Box& box, std::size_t axis) noexcept;

// True when every element of the entry lies inside a region of so many bytes (strides of any sign) and the entry
// is not larger than the region. No overflow, whatever the catalog says.
[[nodiscard]] bool fits(const Entry& entry, std::uint64_t element_bytes, std::uint64_t region_bytes) noexcept;

}  // namespace weightcast::proof

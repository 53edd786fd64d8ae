// Catalogs made in a line: trainer(0).holds("w", {8, 6}, box), server(1).takes("w", {8, 6}, box, kFp8).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "schedule/catalog.h"

namespace weightcast::testing {

// Catalogs in memory, one region a rank, entries laid out one after the other.
class Rank {
 public:
  Rank(Role role, std::uint32_t rank, std::uint32_t replica = 0) {
    catalog_.role = role;
    catalog_.rank = rank;
    catalog_.replica = replica;
    catalog_.regions.push_back({"memory", 0, MemoryKind::host, 0});
  }

  Rank& holds(const std::string& tensor, std::vector<std::int64_t> shape, Box box) {
    add(part_of(tensor, std::move(shape), box), 2);
    return *this;
  }

  Rank& takes(const std::string& tensor, std::vector<std::int64_t> shape, Box box, Recipe recipe = Recipe::bf16) {
    auto entry = part_of(tensor, shape, box);
    entry.recipe = recipe;
    if (has_scales(recipe)) entry.scales = static_cast<std::uint32_t>(catalog_.entries.size() + 1);
    if (has_tensor_scale(recipe)) entry.tensor_scale = static_cast<std::uint32_t>(catalog_.entries.size() + 2);
    add(entry, element_bytes(recipe));
    if (has_scales(recipe)) takes_scales(tensor, shape, box, recipe);
    if (has_tensor_scale(recipe)) takes_scales(tensor, shape, box, Recipe::nvfp4_tensor_scale);
    return *this;
  }

  operator Catalog() const { return catalog_; }

 private:
  void takes_scales(const std::string& tensor, const std::vector<std::int64_t>& shape, const Box& box, Recipe recipe) {
    auto scales = part_of(tensor, shape, box);
    scales.recipe = recipe;
    scales.is_scales = true;
    const BlockShape block = block_shape(recipe);
    for (std::size_t back = 1; back <= std::min<std::size_t>(box.axes, 2); ++back) {
      const std::size_t axis = box.axes - back;
      const auto edge = back == 1 ? block.cols : block.rows;
      const auto end = (box.offset[axis] + box.extent[axis] + edge - 1) / edge;
      scales.shape.edit()[axis] = (shape[axis] + edge - 1) / edge;
      scales.box.offset[axis] = box.offset[axis] / edge;
      scales.box.extent[axis] = end - scales.box.offset[axis];
    }
    add(scales, scale_bytes(recipe));
  }

  static Entry part_of(const std::string& tensor, std::vector<std::int64_t> shape, const Box& box) {
    Entry entry;
    entry.tensor = tensor;
    entry.shape = std::move(shape);
    entry.box = box;
    return entry;
  }

  void add(Entry entry, std::uint64_t element_bytes) {
    auto& region = catalog_.regions.front();
    entry.byte_offset = region.bytes;
    auto stride = static_cast<std::int64_t>(element_bytes);
    const auto values = entry.is_scales ? 1 : values_of_element(entry.recipe);
    for (std::size_t axis = entry.box.axes; axis-- > 0;) {
      entry.strides_bytes[axis] = stride;
      stride *= axis + 1U == entry.box.axes ? entry.box.extent[axis] / values : entry.box.extent[axis];
    }
    region.bytes += static_cast<std::uint64_t>(stride + 7) / 8 * 8;
    catalog_.entries.push_back(std::move(entry));
  }

  Catalog catalog_;
};

inline Rank trainer(std::uint32_t rank) { return {Role::trainer, rank}; }
inline Rank server(std::uint32_t rank, std::uint32_t replica = 0) { return {Role::server, rank, replica}; }
inline constexpr auto kFp8 = Recipe::fp8_e4m3_128x128_fp32;

}  // namespace weightcast::testing

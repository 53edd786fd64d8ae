// Two trainers, two servers and their plan, made by hand: for the proof and what people read of a plan.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "schedule/plan.h"
#include "tests/made_catalog.h"

namespace weightcast::testing {

inline Entry entry(std::string tensor, std::vector<std::int64_t> shape, Box box, std::uint32_t region,
                   std::uint64_t offset, std::int64_t row_bytes, std::int64_t element_bytes) {
  Entry e;
  e.tensor = std::move(tensor);
  e.shape = std::move(shape);
  e.box = box;
  e.region = region;
  e.byte_offset = offset;
  e.strides_bytes = {row_bytes, element_bytes};
  if (box.axes == 1) e.strides_bytes = {element_bytes};
  return e;
}

// A server's FP8 entry at index `scales - 1` with its scales in region 1.
inline std::pair<Entry, Entry> fp8(Box box, Box blocks, std::uint64_t offset, std::int64_t row_bytes,
                                   std::uint32_t scales) {
  auto values = entry("w", {256, 256}, box, 0, offset, row_bytes, 1);
  values.recipe = kFp8;
  values.scales = scales;
  auto of_blocks = entry("w", {256, 256}, blocks, 1, 0, blocks.extent[1] * 4, 4);
  of_blocks.recipe = kFp8;
  of_blocks.is_scales = true;
  return {values, of_blocks};
}

// w: 256 x 256, rows cut at 144 over two trainers, so that the blocks of its second block row straddle them; norm: 64
// values on trainer 0. Server 0 holds both, w in rows of 512 bytes at 0 and norm behind them; server 1 the right half
// of w.
struct World {
  Catalogs catalogs;
  Plan plan;
};

inline Catalogs two_to_two() {
  Catalog first{Role::trainer, 0, 0, {{"shard", 100000}}, {}};
  first.entries = {entry("w", {256, 256}, {2, {0, 0}, {144, 256}}, 0, 0, 512, 2),
                   entry("norm", {64}, {1, {0}, {64}}, 0, 90000, 0, 2)};
  Catalog second{Role::trainer, 1, 0, {{"shard", 100000}}, {}};
  second.entries = {entry("w", {256, 256}, {2, {144, 0}, {112, 256}}, 0, 0, 512, 2)};

  Catalog whole_model{Role::server, 0, 0, {{"weights", 131072}, {"scales", 16}}, {}};
  const auto [values, scales] = fp8({2, {0, 0}, {256, 256}}, {2, {0, 0}, {2, 2}}, 0, 512, 1);
  auto norm = entry("norm", {64}, {1, {0}, {64}}, 0, 130944, 0, 2);
  whole_model.entries = {values, scales, norm};
  Catalog half{Role::server, 1, 1, {{"weights", 32768}, {"scales", 8}}, {}};
  const auto [right, right_scales] = fp8({2, {0, 128}, {256, 128}}, {2, {0, 1}, {2, 1}}, 0, 128, 1);
  half.entries = {right, right_scales};
  return {{first, second}, {whole_model, half}};
}

inline World world() {
  World w{two_to_two(), {}};
  const Box all{2, {0, 0}, {256, 256}};
  const Box right{2, {0, 128}, {256, 128}};
  const Box blocks{2, {0, 0}, {2, 2}};
  const Box right_blocks{2, {0, 1}, {2, 1}};
  const auto to = [](std::uint32_t server, std::uint32_t index) {
    return std::vector<Destination>{{server, index, std::nullopt}};
  };
  w.plan.chunk_bytes = 1 << 20;
  w.plan.columns = {{0}, {1}, {2}};
  w.plan.steps = {
      {0, 0, 0, 1, {2, {0, 0}, {144, 256}}, kFp8, all, to(0, 0), 1, true, 0},
      {0, 0, 0, 1, {2, {0, 128}, {144, 128}}, kFp8, right, to(1, 0), 1, true, 0},
      {0, 1, 0, 1, {1, {0}, {64}}, Recipe::bf16, {1, {0}, {64}}, to(0, 2), 1, false, 0},
      {1, 0, 0, 1, {2, {144, 0}, {112, 256}}, kFp8, all, to(0, 0), 1, true, 0},
      {1, 0, 0, 1, {2, {144, 128}, {112, 128}}, kFp8, right, to(1, 0), 1, true, 0},
  };
  w.plan.scale_steps = {
      {0, 0, 0, 1, kFp8, {2, {0, 0}, {1, 2}}, blocks, to(0, 1)},
      {1, 0, 0, 1, kFp8, {2, {1, 0}, {1, 2}}, blocks, to(0, 1)},
      {1, 0, 0, 1, kFp8, {2, {1, 1}, {1, 1}}, right_blocks, to(1, 1)},
      {0, 0, 0, 1, kFp8, {2, {0, 1}, {1, 1}}, right_blocks, to(1, 1)},
  };
  const Box second_row{2, {1, 0}, {1, 2}};
  w.plan.amax = {{0, 1, {{0, 0, 0, 1, kFp8, second_row}}}, {1, 0, {{0, 0, 0, 1, kFp8, second_row}}}};
  w.plan.trainer_bytes = {144 * 256 + 144 * 128 + 128 + 8 + 4, 112 * 256 + 112 * 128 + 8 + 4};
  w.plan.server_bytes = {65536 + 128 + 16, 32768 + 8};
  w.plan.server_loads = {{.nic_in = 65536 + 128 + 16}, {.nic_in = 32768 + 8}};
  return w;
}

}  // namespace weightcast::testing

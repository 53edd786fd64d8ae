#include "schedule/catalog_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "schedule/blocks.h"

namespace weightcast {
namespace {

struct Axis {
  std::uint64_t stride_bytes = 0;
  std::int64_t extent = 0;
};

// A server entry's bytes as runs: `run_bytes` at every combination of the axes, which are sorted by stride.
struct Runs {
  std::uint64_t run_bytes = 0;
  std::vector<Axis> axes;
  std::uint64_t count = 1;
  bool overlap_themselves = false;
};

Runs runs_of(const Entry& entry, std::uint64_t element_bytes) {
  std::vector<Axis> axes;
  const Box box = stored_box(entry, entry.box);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    if (box.extent[axis] == 1) continue;
    axes.push_back({static_cast<std::uint64_t>(entry.strides_bytes[axis]), box.extent[axis]});
  }
  std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.stride_bytes < b.stride_bytes; });
  Runs runs;
  runs.run_bytes = element_bytes;
  std::uint64_t span = element_bytes;
  for (const auto& axis : axes) {
    const auto extent = static_cast<std::uint64_t>(axis.extent);
    if (axis.stride_bytes < span) runs.overlap_themselves = true;
    span += axis.stride_bytes * (extent - 1);
    if (runs.axes.empty() && axis.stride_bytes == runs.run_bytes) {
      runs.run_bytes *= extent;
    } else {
      runs.axes.push_back(axis);
      runs.count *= extent;
    }
  }
  return runs;
}

struct Run {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::size_t entry = 0;
};

void append_runs(const Runs& runs, std::uint64_t byte_offset, std::size_t entry, std::vector<Run>& out) {
  std::vector<std::int64_t> index(runs.axes.size(), 0);
  while (true) {
    std::uint64_t begin = byte_offset;
    for (std::size_t a = 0; a < index.size(); ++a) {
      begin += runs.axes[a].stride_bytes * static_cast<std::uint64_t>(index[a]);
    }
    out.push_back({begin, runs.run_bytes, entry});
    std::size_t axis = 0;
    for (; axis < index.size(); ++axis) {
      if (++index[axis] < runs.axes[axis].extent) break;
      index[axis] = 0;
    }
    if (axis == index.size()) return;
  }
}

struct Extent {
  std::uint32_t region = 0;
  ByteRange range;
  std::size_t entry = 0;
};

// Entries whose bounding ranges form one connected stretch: only here can two of them share a byte.
class Stretch {
 public:
  Stretch(const Catalog& catalog, const Fail& fail) : catalog_(catalog), fail_(fail) {}

  void check(std::span<const Extent> extents) {
    if (extents.size() < 2) return;
    runs_.clear();
    for (const auto& extent : extents) {
      const auto& entry = catalog_.entries[extent.entry];
      const auto runs = runs_of(entry, element_bytes(catalog_, entry));
      checked_ += runs.count;
      if (checked_ > kMaxRuns) {
        fail_(extent.entry, fmt::format("more than {} interleaved rows: too many to check for overlaps; describe the "
                                        "memory by fewer, larger entries",
                                        kMaxRuns));
      }
      append_runs(runs, entry.byte_offset, extent.entry, runs_);
    }
    std::sort(runs_.begin(), runs_.end(),
              [](const Run& a, const Run& b) { return std::tie(a.begin, a.entry) < std::tie(b.begin, b.entry); });
    for (std::size_t i = 1; i < runs_.size(); ++i) {
      const auto& before = runs_[i - 1];
      if (before.begin + before.bytes > runs_[i].begin) refuse(before, runs_[i]);
    }
  }

 private:
  static constexpr std::uint64_t kMaxRuns = 1U << 24;

  void refuse(const Run& before, const Run& run) const {
    const auto& other = catalog_.entries[before.entry];
    fail_(run.entry, fmt::format("byte {} of region {} also belongs to {}{} {} (entry {})", run.begin,
                                 catalog_.regions[other.region].name, other.is_scales ? "the scales of " : "tensor ",
                                 other.tensor, to_string(other.box), before.entry));
  }

  const Catalog& catalog_;
  const Fail& fail_;
  std::vector<Run> runs_;
  std::uint64_t checked_ = 0;
};

void check_strides(const Catalog& catalog, const Entry& entry, const std::function<void(const std::string&)>& fail) {
  const auto bytes = static_cast<std::int64_t>(element_bytes(catalog, entry));
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    const auto stride = entry.strides_bytes[axis];
    if (stride % bytes != 0)
      fail(fmt::format("a stride of {} bytes is no multiple of {}-byte elements", stride, bytes));
    if (catalog.role == Role::server && stride <= 0)
      fail(fmt::format("a stride of {} bytes; a server's are positive", stride));
  }
  if (entry.byte_offset % static_cast<std::uint64_t>(bytes) != 0) {
    fail(fmt::format("byte_offset {} is no multiple of {}-byte elements", entry.byte_offset, bytes));
  }
}

void check_packed_scales(const Catalog& catalog, const Entry& entry,
                         const std::function<void(const std::string&)>& fail) {
  const auto& [region, byte_offset, stride] = *entry.packed_scales;
  if (entry.recipe != Recipe::fp8_e4m3_128x128_ue8m0 || entry.box.axes != 2) {
    fail(fmt::format("\"packed_scales\" are of matrices under {}", to_string(Recipe::fp8_e4m3_128x128_ue8m0)));
  }
  const auto groups = static_cast<std::uint64_t>((blocks_touched(entry.box, entry.recipe).extent[1] + 3) / 4);
  const std::uint64_t row_bytes = 4 * static_cast<std::uint64_t>(entry.box.extent[0]);
  if (byte_offset % 4 != 0 || stride % 16 != 0 || stride < row_bytes) {
    fail(
        fmt::format("\"packed_scales\" at byte {} with groups {} bytes apart: words of 4 bytes, groups of {} rounded "
                    "up to 16 are needed",
                    byte_offset, stride, row_bytes));
  }
  const std::uint64_t bytes = catalog.regions[region].bytes;
  if (byte_offset > bytes || row_bytes > bytes - byte_offset ||
      (groups > 1 && stride > (bytes - byte_offset - row_bytes) / (groups - 1))) {
    fail(fmt::format("the packed scales do not fit into region {} of {} bytes", catalog.regions[region].name, bytes));
  }
}

}  // namespace

std::uint64_t element_bytes(const Catalog& catalog, const Entry& entry) noexcept {
  return catalog.role == Role::server ? stored_bytes(entry) : element_bytes(entry.source_type);
}

std::optional<ByteRange> bounding_range(const Entry& entry, std::uint64_t element_bytes,
                                        std::uint64_t region_bytes) noexcept {
  auto first = static_cast<std::int64_t>(entry.byte_offset);
  auto last = first;
  if (first < 0) return std::nullopt;
  const Box box = stored_box(entry, entry.box);
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    auto& end = entry.strides_bytes[axis] < 0 ? first : last;
    if (!multiply_add(end, box.extent[axis] - 1, entry.strides_bytes[axis])) return std::nullopt;
  }
  if (first < 0 || __builtin_add_overflow(last, static_cast<std::int64_t>(element_bytes), &last)) return std::nullopt;
  if (static_cast<std::uint64_t>(last) > region_bytes) return std::nullopt;
  return ByteRange{static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(last)};
}

void check_entry(const Catalog& catalog, std::size_t index, const Fail& fail) {
  const auto& entry = catalog.entries[index];
  const auto here = [&](const std::string& what) { fail(index, what); };
  if (!contains(whole(entry.shape), entry.box)) {
    here(fmt::format("the box {} is not inside the shape {}", to_string(entry.box), to_string(whole(entry.shape))));
  }
  check_strides(catalog, entry, here);
  const auto& region = catalog.regions[entry.region];
  if (!bounding_range(entry, element_bytes(catalog, entry), region.bytes)) {
    here(fmt::format("the box {} at byte {} does not fit into region {} of {} bytes", to_string(entry.box),
                     entry.byte_offset, region.name, region.bytes));
  }
  if (catalog.role != Role::server) return;
  if (runs_of(entry, element_bytes(catalog, entry)).overlap_themselves) {
    here("the strides put two of its elements on the same bytes");
  }
  if (entry.is_scales) {
    if (entry.scales || entry.tensor_scale) here("scales have no scales");
    return;
  }
  if (entry.tensor_scale && !has_tensor_scale(entry.recipe)) {
    here(fmt::format("the recipe {} has no \"tensor_scale\"", to_string(entry.recipe)));
  }
  if (!has_scales(entry.recipe)) {
    if (entry.scales) here(fmt::format("the recipe {} has no scales", to_string(entry.recipe)));
    return;
  }
  if (!entry.scales) here(fmt::format("the recipe {} needs \"scales\"", to_string(entry.recipe)));
  if (!entry.tensor_scale && has_tensor_scale(entry.recipe)) {
    here(fmt::format("the recipe {} needs a \"tensor_scale\"", to_string(entry.recipe)));
  }
  if (entry.packed_scales) check_packed_scales(catalog, entry, here);
  if (!is_servable(entry.box, entry.shape, entry.recipe)) {
    here(fmt::format("the box {} cuts {}; the recipe {} needs whole ones", to_string(entry.box),
                     blocks_text(entry.recipe), to_string(entry.recipe)));
  }
}

void check_scales(const Catalog& catalog, const Fail& fail) {
  std::vector<bool> used(catalog.entries.size(), false);
  const auto check = [&](std::size_t i, std::optional<std::uint32_t> of, Recipe recipe) {
    if (!of) return;
    const auto& entry = catalog.entries[i];
    if (*of >= catalog.entries.size()) fail(i, fmt::format("there is no entry {} for its scales", *of));
    const auto& scales = catalog.entries[*of];
    const auto blocks = blocks_touched(entry.box, recipe);
    const auto grid = block_grid(entry.shape, recipe);
    if (!scales.is_scales || scales.tensor != entry.tensor || scales.recipe != recipe || scales.shape != grid ||
        scales.box != blocks) {
      fail(i, fmt::format("entry {} does not hold its scales: blocks {} of a grid of {}", *of, to_string(blocks),
                          to_string(whole(grid))));
    }
    used[*of] = true;
  };
  for (std::size_t i = 0; i < catalog.entries.size(); ++i) {
    check(i, catalog.entries[i].scales, catalog.entries[i].recipe);
    check(i, catalog.entries[i].tensor_scale, Recipe::nvfp4_tensor_scale);
  }
  for (std::size_t i = 0; i < catalog.entries.size(); ++i) {
    if (catalog.entries[i].is_scales && !used[i]) fail(i, "these are the scales of no entry");
  }
}

void check_packed_regions(const Catalog& catalog, const Fail& fail) {
  std::vector<bool> holds_entries(catalog.regions.size(), false);
  for (const auto& entry : catalog.entries) holds_entries[entry.region] = true;
  for (std::size_t i = 0; i < catalog.entries.size(); ++i) {
    const auto& packed = catalog.entries[i].packed_scales;
    if (!packed || !holds_entries[packed->region]) continue;
    fail(i, fmt::format("region {} holds packed scales, which a commit writes, and entries, which trainers write",
                        catalog.regions[packed->region].name));
  }
}

void check_names(const Catalog& catalog, const Fail& fail) {
  std::vector<std::size_t> order(catalog.entries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto is_of_tensor = [](const Entry& entry) { return entry.recipe == Recipe::nvfp4_tensor_scale; };
  const auto key = [&](std::size_t i) {
    const auto& entry = catalog.entries[i];
    return std::tuple<const SharedText&, bool, bool, const Box&>(entry.tensor, entry.is_scales, is_of_tensor(entry),
                                                                 entry.box);
  };
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return key(a) != key(b) ? key(a) < key(b) : a < b; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const auto& before = catalog.entries[order[i - 1]];
    const auto& entry = catalog.entries[order[i]];
    if (before.tensor != entry.tensor || before.is_scales != entry.is_scales) continue;
    if (is_of_tensor(before) != is_of_tensor(entry)) continue;
    if (before.shape != entry.shape) {
      fail(order[i], fmt::format("two tensors of one name: entry {} has the shape {}, this one {}", order[i - 1],
                                 to_string(whole(before.shape)), to_string(whole(entry.shape))));
    }
    if (before.box == entry.box) {
      fail(order[i], fmt::format("the box {} is listed twice, first as entry {}: two tensors of one name?",
                                 to_string(entry.box), order[i - 1]));
    }
  }
}

void check_overlaps(const Catalog& catalog, const Fail& fail) {
  std::vector<Extent> extents;
  extents.reserve(catalog.entries.size());
  for (std::size_t i = 0; i < catalog.entries.size(); ++i) {
    const auto& entry = catalog.entries[i];
    const auto range = bounding_range(entry, element_bytes(catalog, entry), catalog.regions[entry.region].bytes);
    extents.push_back({entry.region, range.value(), i});
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.region, a.range.begin, a.entry) < std::tie(b.region, b.range.begin, b.entry);
  });
  Stretch stretch(catalog, fail);
  const std::span<const Extent> all(extents);
  std::size_t begin = 0;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i > begin && (all[i].region != all[begin].region || all[i].range.begin >= end)) {
      stretch.check(all.subspan(begin, i - begin));
      begin = i;
      end = 0;
    }
    end = std::max(end, all[i].range.end);
  }
  stretch.check(all.subspan(begin));
}

}  // namespace weightcast

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

struct Extent {
  std::uint32_t region = 0;
  Run bytes;
  std::size_t entry = 0;
};

// From the first to the last byte. Strides are positive.
Run reach_of(const Entry& entry) {
  Run run{entry.byte_offset, entry.byte_offset + stored_bytes(entry)};
  for (std::size_t index = 0; index < entry.box.axes; ++index) {
    const Axis axis = axis_of(entry, entry.box, index);
    run.end += static_cast<std::uint64_t>((axis.extent - 1) * axis.stride);
  }
  return run;
}

// Each axis steps over all that the axes within it reach, so that no two elements meet. Rare layouts that interleave
// axes are looked at byte by byte.
bool is_nested(const Entry& entry) {
  std::array<Axis, kMaxAxes> axes{};
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) axes[axis] = axis_of(entry, entry.box, axis);
  std::sort(axes.begin(), axes.end(),
            [](const Axis& a, const Axis& b) { return std::tie(a.stride, a.extent) < std::tie(b.stride, b.extent); });
  auto reach = static_cast<std::int64_t>(stored_bytes(entry));
  for (const auto& [stride, extent] : axes) {
    if (extent == 1) continue;
    if (stride < reach) return false;
    reach += (extent - 1) * stride;
  }
  return true;
}

bool comes_before(const Extent& a, const Extent& b) {
  if (a.region != b.region) return a.region < b.region;
  return a.bytes.begin != b.bytes.begin ? a.bytes.begin < b.bytes.begin : a.entry < b.entry;
}

// Entries whose reaches overlap, byte by byte.
void check_runs(const Catalog& catalog, std::span<const Extent> stretch) {
  std::vector<Extent> runs;
  for (const auto& extent : stretch) {
    const auto& entry = catalog.entries[extent.entry];
    for (const auto& run : runs_of(entry, entry.box, stored_bytes(entry))) {
      runs.push_back({extent.region, run, extent.entry});
    }
  }
  std::sort(runs.begin(), runs.end(), comes_before);
  for (std::size_t i = 1; i < runs.size(); ++i) {
    const auto& before = runs[i - 1];
    const auto& run = runs[i];
    if (run.bytes.begin >= before.bytes.end) continue;
    violated("entries {} ({}) and {} ({}) of server {} share bytes {} to {} of region \"{}\"", before.entry,
             catalog.entries[before.entry].tensor, run.entry, catalog.entries[run.entry].tensor, catalog.rank,
             run.bytes.begin, std::min(before.bytes.end, run.bytes.end), catalog.regions[run.region].name);
  }
}

void check_server(const Catalog& catalog) {
  std::vector<Extent> extents;
  extents.reserve(catalog.entries.size());
  for (std::size_t i = 0; i < catalog.entries.size(); ++i) {
    extents.push_back({catalog.entries[i].region, reach_of(catalog.entries[i]), i});
  }
  std::sort(extents.begin(), extents.end(), comes_before);
  for (std::size_t begin = 0, end = 0; begin < extents.size(); begin = end) {
    auto reach = extents[begin].bytes.end;
    for (end = begin + 1;
         end < extents.size() && extents[end].region == extents[begin].region && extents[end].bytes.begin < reach;
         ++end) {
      reach = std::max(reach, extents[end].bytes.end);
    }
    const bool is_alone = end == begin + 1 && is_nested(catalog.entries[extents[begin].entry]);
    if (!is_alone) check_runs(catalog, std::span(extents).subspan(begin, end - begin));
  }
}

}  // namespace

void check_memory(const Catalogs& catalogs) {
  std::unordered_set<const void*> checked;  // lists of entries: their addresses are offsets, whoever has them
  for (const auto& server : catalogs.servers) {
    if (checked.insert(server.entries.identity()).second) check_server(server);
  }
}

}  // namespace weightcast::proof

#include "schedule/catalog.h"

#include <fmt/format.h>

#include "schedule/blocks.h"
#include "schedule/fingerprint.h"

namespace weightcast {

std::string_view to_string(Role role) noexcept { return role == Role::trainer ? "trainer" : "server"; }

std::string_view to_string(Landing landing) noexcept {
  switch (landing) {
    case Landing::direct: return "direct";
    case Landing::swapped_halves: return "swapped_halves";
    case Landing::staged_repair: return "staged_repair";
  }
  return "unknown";
}

std::string name_of(const Catalog& catalog) {
  if (catalog.role == Role::trainer) return fmt::format("trainer {}", catalog.rank);
  return fmt::format("server {} (replica {})", catalog.rank, catalog.replica);
}

std::uint64_t digest_of(const SharedList<Entry>& entries, Role role) {
  Fingerprint print;
  print.add(entries.size());
  for (const auto& entry : entries) {
    Fingerprint one;  // entries do not wait for one another
    one.add(entry.tensor.print());
    one.add(entry.parameter.print());
    for (const auto extent : entry.shape) one.add(static_cast<std::uint64_t>(extent));
    for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
      one.add(static_cast<std::uint64_t>(entry.box.offset[axis]));
      one.add(static_cast<std::uint64_t>(entry.box.extent[axis]));
      one.add(static_cast<std::uint64_t>(entry.strides_bytes[axis]));
    }
    const auto format =
        role == Role::trainer ? static_cast<unsigned>(entry.source_type) : static_cast<unsigned>(entry.recipe);
    one.add(std::uint64_t{entry.region} << 32 | std::uint64_t{entry.box.axes} << 24 | format << 16 |
            static_cast<unsigned>(entry.landing) << 8 | (entry.is_scales ? 1U : 0U));
    one.add(entry.byte_offset);
    one.add(entry.scales ? std::uint64_t{1} + *entry.scales : 0);
    if (entry.tensor_scale) one.add(std::uint64_t{1} + *entry.tensor_scale);
    if (entry.packed_scales) {
      one.add(entry.packed_scales->region);
      one.add(entry.packed_scales->byte_offset);
      one.add(entry.packed_scales->group_stride_bytes);
    }
    print.add(one.value());
  }
  return print.value();
}

std::uint64_t digest_of(const Catalog& catalog) { return digest_of(catalog, digest_of(catalog.entries, catalog.role)); }

std::uint64_t digest_of(const Catalog& catalog, std::uint64_t digest_of_entries) {
  Fingerprint print;
  print.add(static_cast<std::uint64_t>(catalog.role));
  print.add(catalog.rank);
  print.add(catalog.replica);
  print.add(catalog.regions.size());
  for (const auto& region : catalog.regions) {
    print.add(region.name);
    print.add(region.bytes);
    print.add(static_cast<std::uint64_t>(region.kind));
  }
  print.add(digest_of_entries);
  return print.value();
}

std::uint64_t stored_bytes(const Entry& entry) noexcept {
  return entry.is_scales ? scale_bytes(entry.recipe) : element_bytes(entry.recipe);
}

Box stored_box(const Entry& entry, const Box& box) noexcept {
  return entry.is_scales ? box : stored_box(box, entry.recipe);
}

std::uint64_t byte_at(const Entry& entry, const std::array<std::int64_t, kMaxAxes>& element) noexcept {
  const Box stored = stored_box(entry, entry.box);
  auto byte = static_cast<std::int64_t>(entry.byte_offset);
  for (std::size_t axis = 0; axis < stored.axes; ++axis) {
    byte += (element[axis] - stored.offset[axis]) * entry.strides_bytes[axis];
  }
  return static_cast<std::uint64_t>(byte);
}

std::uint64_t digest_key(std::string_view tensor, bool is_scales) noexcept {
  Fingerprint print;
  print.add(tensor);
  print.add(is_scales ? 1 : 0);
  return print.value();
}

}  // namespace weightcast

#include "schedule/catalog.h"

#include <fmt/format.h>

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

std::uint64_t digest_of(const Catalog& catalog) {
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
  print.add(catalog.entries.size());
  for (const auto& entry : catalog.entries) {
    print.add(entry.tensor);
    print.add(entry.parameter);
    print.add(entry.shape.size());
    for (const auto extent : entry.shape) print.add(static_cast<std::uint64_t>(extent));
    print.add(entry.box.axes);
    for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
      print.add(static_cast<std::uint64_t>(entry.box.offset[axis]));
      print.add(static_cast<std::uint64_t>(entry.box.extent[axis]));
      print.add(static_cast<std::uint64_t>(entry.strides_bytes[axis]));
    }
    print.add(static_cast<std::uint64_t>(catalog.role == Role::trainer ? entry.source_type : SourceType::bf16));
    print.add(static_cast<std::uint64_t>(catalog.role == Role::server ? entry.recipe : Recipe::bf16));
    print.add(entry.region);
    print.add(entry.byte_offset);
    print.add(entry.scales ? std::uint64_t{1} + *entry.scales : 0);
    print.add(entry.is_scales ? 1 : 0);
    print.add(static_cast<std::uint64_t>(entry.landing));
  }
  return print.value();
}

std::uint64_t byte_at(const Entry& entry, const std::array<std::int64_t, kMaxAxes>& element) noexcept {
  auto byte = static_cast<std::int64_t>(entry.byte_offset);
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    byte += (element[axis] - entry.box.offset[axis]) * entry.strides_bytes[axis];
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

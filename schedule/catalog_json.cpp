// The catalog as JSON, see FORMATS.md. A plain entry is read as a block of memory with one part.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "quant/packed_scales.h"
#include "schedule/blocks.h"
#include "schedule/catalog.h"
#include "schedule/catalog_check.h"
#include "schedule/place.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kCatalogFormat = "weightcast.catalog/1";
constexpr std::size_t kMaxCatalogBytes = std::size_t{1} << 30;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 60;
constexpr std::array<std::string_view, 2> kKinds = {"host", "cuda"};
const std::array<std::string_view, 3> kLandings = {to_string(Landing::direct), to_string(Landing::swapped_halves),
                                                   to_string(Landing::staged_repair)};

// Memory that an array of `shape` lies in.
struct Block {
  std::uint32_t region = 0;
  std::uint64_t byte_offset = 0;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides_bytes;
};

// An array of scales, and where those of an entry stand in it.
struct ScalesBlock {
  std::string_view key;  // that it was read from
  Recipe recipe = Recipe::bf16;
  Block memory;
  std::vector<std::int64_t> at;
};

template <std::size_t N>
std::size_t index_in(const std::array<std::string_view, N>& names, const Place& place) {
  const auto& name = place.text(kMaxNameBytes);
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    place.fail(fmt::format("\"{}\" is not known; the nearest known value is \"{}\"", name.substr(0, 100),
                           nearest(name.substr(0, 100), {names.begin(), names.end()})));
  }
  return static_cast<std::size_t>(found - names.begin());
}

std::vector<std::int64_t> shape_at(const Place& place) {
  auto shape = place.integers(kMaxAxes, 1);
  if (shape.empty()) shape = {1};  // a scalar
  std::int64_t count = 1;
  for (const auto extent : shape) {
    if (__builtin_mul_overflow(count, extent, &count) || count > kMaxElements) {
      place.fail(fmt::format("more than {} elements", kMaxElements));
    }
  }
  return shape;
}

Box box_of(const Place& entry, const std::vector<std::int64_t>& shape) {
  Box box = whole(shape);
  const auto read = [&](std::string_view key, std::int64_t least, std::array<std::int64_t, kMaxAxes>& values) {
    if (!entry.has(key)) return false;
    const auto place = entry.at(key);
    const auto given = place.integers(kMaxAxes, least);
    if (given.size() != box.axes) place.fail(fmt::format("has {} axes, the shape has {}", given.size(), box.axes));
    std::copy(given.begin(), given.end(), values.begin());
    return true;
  };
  read("offset", 0, box.offset);
  if (!read("extent", 1, box.extent)) {
    for (std::size_t axis = 0; axis < box.axes; ++axis) box.extent[axis] -= box.offset[axis];
  }
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto left = shape[axis] - box.offset[axis];
    if (box.extent[axis] >= 1 && box.extent[axis] <= left) continue;
    entry.fail(fmt::format("offset {} and extent {} on axis {} are not inside the shape's {}", box.offset[axis],
                           box.extent[axis], axis, shape[axis]));
  }
  return box;
}

class CatalogReader {
 public:
  CatalogReader(const Json& document, const std::string& origin) : root_(document, origin) {}

  Catalog read() {
    root_.require_keys({"format", "role", "rank", "replica", "regions", "entries"});
    const auto format = root_.at("format");
    if (format.text(kMaxNameBytes) != kCatalogFormat)
      format.fail(fmt::format("this version reads \"{}\" only", kCatalogFormat));
    catalog_.role = static_cast<Role>(index_in(std::array<std::string_view, 2>{"trainer", "server"}, root_.at("role")));
    catalog_.rank = static_cast<std::uint32_t>(root_.at("rank").integer(0, kMaxRank));
    if (root_.has("replica")) {
      catalog_.replica = static_cast<std::uint32_t>(root_.at("replica").integer(0, is_server() ? kMaxRank : 0));
    }
    read_regions(root_.at("regions"));
    const auto entries = root_.at("entries");
    const auto count = entries.size_of_array(kMaxEntries);
    for (std::size_t i = 0; i < count; ++i) read_entry(entries.at(i), i);
    check();
    return std::move(catalog_);
  }

 private:
  // Where an entry stands in the document.
  struct Source {
    std::size_t entry = 0;
    std::optional<std::size_t> part;
    std::string_view nested;  // "scales", "tensor_scale": the entry of that object
  };

  bool is_server() const { return catalog_.role == Role::server; }

  void read_regions(const Place& regions) {
    const auto count = regions.size_of_array(kMaxRegions);
    for (std::size_t i = 0; i < count; ++i) {
      const auto place = regions.at(i);
      place.require_keys({"name", "bytes", "kind", "address"});
      Region region;
      region.name = place.at("name").text(kMaxNameBytes);
      region.bytes = static_cast<std::uint64_t>(place.at("bytes").integer(1));
      if (place.has("kind")) region.kind = static_cast<MemoryKind>(index_in(kKinds, place.at("kind")));
      if (place.has("address")) region.address = place.at("address").count();
      if (!region_names_.emplace(region.name, static_cast<std::uint32_t>(i)).second) {
        place.at("name").fail(fmt::format("two regions of the name {}", region.name));
      }
      catalog_.regions.push_back(std::move(region));
    }
  }

  std::uint32_t region_at(const Place& place) const {
    if (place.value().is_string()) {
      const auto& name = place.text(kMaxNameBytes);
      const auto found = region_names_.find(name);
      if (found == region_names_.end()) place.fail(fmt::format("there is no region {}", name));
      return found->second;
    }
    if (catalog_.regions.empty()) place.fail("there are no regions");
    return static_cast<std::uint32_t>(place.integer(0, static_cast<std::int64_t>(catalog_.regions.size()) - 1));
  }

  // `values` of the last axis are stored as one element of `element_bytes`.
  Block block_at(const Place& place, std::vector<std::int64_t> shape, std::uint64_t element_bytes,
                 std::int64_t values = 1) const {
    Block block;
    block.region = region_at(place.at("region"));
    block.byte_offset =
        place.has("byte_offset") ? static_cast<std::uint64_t>(place.at("byte_offset").integer(0)) : std::uint64_t{0};
    block.shape = std::move(shape);
    if (place.has("strides_bytes")) {
      const auto strides = place.at("strides_bytes");
      block.strides_bytes = strides.integers(kMaxAxes, std::numeric_limits<std::int64_t>::min());
      if (block.strides_bytes.size() != block.shape.size()) {
        strides.fail(fmt::format("has {} axes, the memory has {}", block.strides_bytes.size(), block.shape.size()));
      }
      return block;
    }
    block.strides_bytes.resize(block.shape.size());
    auto stride = static_cast<std::int64_t>(element_bytes);
    for (std::size_t axis = block.shape.size(); axis-- > 0;) {
      block.strides_bytes[axis] = stride;
      const auto stored =
          axis + 1 == block.shape.size() ? (block.shape[axis] + values - 1) / values : block.shape[axis];
      if (__builtin_mul_overflow(stride, stored, &stride)) place.fail("more bytes than 2^63");
    }
    return block;
  }

  void read_entry(const Place& place, std::size_t index) {
    if (!place.value().is_object()) place.fail("must be an object");
    const bool fused = place.has("parts");
    const auto type_key = is_server() ? "recipe" : "dtype";
    const auto landing_key = is_server() ? "landing" : type_key;  // a trainer has no landing
    const auto scales_key = is_server() ? "scales" : type_key;
    const auto tensor_scale_key = is_server() ? "tensor_scale" : type_key;
    const auto packed_key = is_server() ? "packed_scales" : type_key;
    const auto is_scales_key = is_server() ? "is_scales" : type_key;
    if (fused) {
      place.require_keys({"parameter", "shape", "region", "byte_offset", "strides_bytes", type_key, scales_key,
                          tensor_scale_key, packed_key, landing_key, "parts"});
    } else {
      place.require_keys({"tensor", "shape", "offset", "extent", "region", "byte_offset", "strides_bytes", type_key,
                          scales_key, tensor_scale_key, packed_key, is_scales_key, landing_key, "parameter", "parts"});
    }
    Entry common;
    read_type(place.at(type_key), common);
    if (is_server() && place.has("landing")) {
      common.landing = static_cast<Landing>(index_in(kLandings, place.at("landing")));
    }
    if (place.has("parameter")) common.parameter = place.at("parameter").text(kMaxNameBytes);
    if (fused) {
      read_parts(place, common, index);
    } else {
      read_plain(place, common, index);
    }
  }

  void read_type(const Place& place, Entry& entry) const {
    const auto& name = place.text(kMaxNameBytes);
    const auto source = is_server() ? std::nullopt : parse_source_type(name);
    const auto recipe = is_server() ? parse_recipe(name) : std::nullopt;
    if (!source && !recipe) {
      std::vector<std::string_view> known;
      for (int i = 0; i < 256; ++i) {
        const auto known_name = is_server() ? to_string(Recipe(i)) : to_string(SourceType(i));
        if (known_name != "unknown") known.push_back(known_name);
      }
      place.fail(fmt::format("\"{}\" is not known; the nearest known one is \"{}\"", name.substr(0, 100),
                             nearest(name.substr(0, 100), known)));
    }
    if (source) entry.source_type = *source;
    if (recipe) entry.recipe = *recipe;
  }

  std::uint64_t bytes_of(const Entry& entry) const {
    return is_server() ? stored_bytes(entry) : element_bytes(entry.source_type);
  }

  // The arrays of scales that an entry or its parts name by objects; `shape_of` says what of them a recipe needs.
  template <class ShapeOf>
  std::vector<ScalesBlock> scales_at(const Place& place, Recipe values, const ShapeOf& shape_of) const {
    std::vector<ScalesBlock> all;
    const std::array<std::pair<std::string_view, Recipe>, 2> kinds = {
        {{"scales", values}, {"tensor_scale", Recipe::nvfp4_tensor_scale}}};
    for (const auto& [key, recipe] : kinds) {
      if (!place.has(key) || place.at(key).value().is_number()) continue;
      const auto scales = place.at(key);
      if (!has_scales(recipe)) place.fail(fmt::format("the recipe {} has no scales", to_string(recipe)));
      all.push_back({key, recipe, block_at(scales, shape_of(scales, recipe), scale_bytes(recipe)), {}});
    }
    return all;
  }

  // Of an entry whose first element stands at `at` in an array of `shape`.
  void read_packed_scales(const Place& place, const std::vector<std::int64_t>& shape,
                          const std::vector<std::int64_t>& at, Entry& entry) const {
    if (!place.has("packed_scales")) return;
    const auto packed = place.at("packed_scales");
    packed.require_keys({"region", "byte_offset", "group_stride_bytes"});
    constexpr std::int64_t kGroup = 4 * kBlock;  // columns
    const auto axes = at.size();
    if (axes < 2 || at.back() % kGroup != 0) {
      packed.fail(fmt::format("are of matrices whose columns begin at multiples of {}", kGroup));
    }
    PackedScales scales;
    scales.region = region_at(packed.at("region"));
    scales.group_stride_bytes = packed.has("group_stride_bytes")
                                    ? static_cast<std::uint64_t>(packed.at("group_stride_bytes").integer(1))
                                    : packed_group_bytes(shape[axes - 2]);
    std::uint64_t matrix = 0;
    for (std::size_t axis = 0; axis + 2 < axes; ++axis) {
      matrix = matrix * static_cast<std::uint64_t>(shape[axis]) + static_cast<std::uint64_t>(at[axis]);
    }
    const auto groups = static_cast<std::uint64_t>((shape.back() + kGroup - 1) / kGroup);
    const auto group = matrix * groups + static_cast<std::uint64_t>(at.back() / kGroup);
    if (scales.group_stride_bytes > (std::uint64_t{1} << 40) || group > (std::uint64_t{1} << 20)) {
      packed.fail("stand beyond 2^60 bytes");
    }
    scales.byte_offset = group * scales.group_stride_bytes + 4 * static_cast<std::uint64_t>(at[axes - 2]);
    if (packed.has("byte_offset")) {
      scales.byte_offset += static_cast<std::uint64_t>(packed.at("byte_offset").integer(0));
    }
    entry.packed_scales = scales;
  }

  void read_plain(const Place& outer, Entry entry, std::size_t index) {
    auto place = outer;
    place.set_tensor(place.at("tensor").text(kMaxNameBytes));
    entry.tensor = std::string(place.tensor());
    entry.shape = shape_at(place.at("shape"));
    entry.box = box_of(place, entry.shape);
    const auto extents = [](const Box& box) {
      return std::vector<std::int64_t>(box.extent.begin(), box.extent.begin() + box.axes);
    };
    if (place.has("is_scales")) entry.is_scales = place.at("is_scales").boolean();
    if (entry.is_scales && !has_scales(entry.recipe)) {
      place.at("recipe").fail(
          fmt::format("{} has no scales; it names the recipe of the values", to_string(entry.recipe)));
    }
    if (!entry.is_scales && !is_of_values(entry.recipe)) {
      place.at("recipe").fail(
          fmt::format("{} is of scales only; of values there are {}", to_string(entry.recipe), recipes_of_values()));
    }
    const auto values = entry.is_scales ? 1 : values_of_element(entry.recipe);
    const auto memory = block_at(place, extents(entry.box), bytes_of(entry), values);
    const auto index_at = [&](const char* key, std::optional<std::uint32_t>& of) {
      if (!place.has(key) || !place.at(key).value().is_number()) return;
      of = static_cast<std::uint32_t>(place.at(key).integer(0, kMaxEntries));
    };
    index_at("scales", entry.scales);
    index_at("tensor_scale", entry.tensor_scale);
    auto scales = scales_at(place, entry.recipe, [&](const Place& of, Recipe recipe) {
      of.require_keys({"region", "byte_offset", "strides_bytes"});
      return extents(blocks_touched(entry.box, recipe));
    });
    const std::vector<std::int64_t> start(entry.box.axes, 0);
    for (auto& of : scales) of.at = start;
    read_packed_scales(place, memory.shape, start, entry);
    add(place, std::move(entry), memory, start, scales, {index, std::nullopt, {}});
  }

  void read_parts(const Place& place, const Entry& common, std::size_t index) {
    if (!is_of_values(common.recipe)) place.at("recipe").fail("is of scales, which have no parts");
    const auto memory =
        block_at(place, shape_at(place.at("shape")), bytes_of(common), values_of_element(common.recipe));
    auto scales = scales_at(place, common.recipe, [&](const Place& of, Recipe recipe) {
      of.require_keys({"shape", "region", "byte_offset", "strides_bytes"});
      return of.has("shape") ? shape_at(of.at("shape")) : block_grid(memory.shape, recipe);
    });
    const auto parts = place.at("parts");
    const auto count = parts.size_of_array(kMaxEntries);
    if (count == 0) parts.fail("must not be empty");
    for (std::size_t i = 0; i < count; ++i) {
      auto part = parts.at(i);
      part.require_keys({"tensor", "shape", "offset", "extent", "at", "scales_at", "tensor_scale_at"});
      auto entry = common;
      part.set_tensor(part.at("tensor").text(kMaxNameBytes));
      entry.tensor = std::string(part.tensor());
      entry.shape = shape_at(part.at("shape"));
      entry.box = box_of(part, entry.shape);
      auto at = std::vector<std::int64_t>(memory.shape.size(), 0);
      if (part.has("at")) at = part.at("at").integers(kMaxAxes, 0);
      for (auto& of : scales) of.at = scales_at_of(part, at, entry, of);
      read_packed_scales(place, memory.shape, at, entry);
      add(part, std::move(entry), memory, at, scales, {index, i, {}});
    }
  }

  // Where a part's scales stand: as given, else where its blocks stand when the scales follow the memory's own grid.
  static std::vector<std::int64_t> scales_at_of(const Place& part, std::vector<std::int64_t> at, const Entry& entry,
                                                const ScalesBlock& scales) {
    const auto key = fmt::format("{}_at", scales.key);
    if (part.has(key)) return part.at(key).integers(kMaxAxes, 0);
    const std::size_t axes = std::min<std::size_t>(entry.box.axes, at.size());
    for (std::size_t back = 1; back <= axes; ++back) {
      const auto edge = block_edge(scales.recipe, axes, axes - back);
      auto& position = at[at.size() - back];
      if (position % edge != 0) {
        part.fail(fmt::format("stands at {}, inside a block ({}): say where its scales stand with \"{}\"", position,
                              blocks_text(scales.recipe), key));
      }
      position /= edge;
    }
    return at;
  }

  // Lays `entry` (its box is known) into `memory`, its first element at `at`. The memory may have more axes than the
  // box: the box lies in the last ones.
  static void lay(const Place& place, Entry& entry, const Block& memory, const std::vector<std::int64_t>& at) {
    if (at.size() != memory.shape.size()) {
      place.fail(fmt::format("\"at\" has {} axes, the memory has {}", at.size(), memory.shape.size()));
    }
    if (entry.box.axes > at.size()) {
      place.fail(fmt::format("the box has {} axes, the memory only {}", entry.box.axes, at.size()));
    }
    const auto outer = at.size() - entry.box.axes;
    const auto values = entry.is_scales ? 1 : values_of_element(entry.recipe);
    if (at.back() % values != 0) place.fail(fmt::format("stands at {}, inside a byte", at.back()));
    auto byte = static_cast<std::int64_t>(memory.byte_offset);
    for (std::size_t axis = 0; axis < at.size(); ++axis) {
      const auto extent = axis < outer ? 1 : entry.box.extent[axis - outer];
      if (at[axis] > memory.shape[axis] - extent) {
        place.fail(fmt::format("stands at {} with {} elements on axis {}, the memory has {}{}", at[axis], extent, axis,
                               memory.shape[axis], entry.is_scales ? " (scales)" : ""));
      }
      const auto stored = axis + 1 == at.size() ? at[axis] / values : at[axis];
      if (!multiply_add(byte, stored, memory.strides_bytes[axis])) place.fail("byte offsets beyond 2^63");
      if (axis >= outer) entry.strides_bytes[axis - outer] = memory.strides_bytes[axis];
    }
    if (byte < 0) place.fail("starts before its region");
    entry.region = memory.region;
    entry.byte_offset = static_cast<std::uint64_t>(byte);
  }

  void add(const Place& place, Entry entry, const Block& memory, const std::vector<std::int64_t>& at,
           const std::vector<ScalesBlock>& scales, Source source) {
    if (catalog_.entries.size() + 1 + scales.size() > kMaxEntries) {
      place.fail(fmt::format("more than {} entries", kMaxEntries));
    }
    lay(place, entry, memory, at);
    std::vector<Entry> scales_entries;
    scales_entries.reserve(scales.size());
    for (const auto& of : scales) {
      Entry& scales_entry = scales_entries.emplace_back(entry);
      scales_entry.is_scales = true;
      scales_entry.recipe = of.recipe;
      scales_entry.shape = block_grid(entry.shape, of.recipe);
      scales_entry.box = blocks_touched(entry.box, of.recipe);
      scales_entry.strides_bytes = {};
      scales_entry.scales = scales_entry.tensor_scale = std::nullopt;
      scales_entry.packed_scales = std::nullopt;
      lay(place, scales_entry, of.memory, of.at);
    }
    auto next = static_cast<std::uint32_t>(catalog_.entries.size());
    for (const auto& of : scales) (of.recipe == entry.recipe ? entry.scales : entry.tensor_scale) = ++next;
    catalog_.entries.push_back(std::move(entry));
    sources_.push_back(source);
    for (std::size_t i = 0; i < scales.size(); ++i) {
      catalog_.entries.push_back(std::move(scales_entries[i]));
      source.nested = scales[i].key;
      sources_.push_back(source);
    }
  }

  void check() {
    const Fail fail = [&](std::size_t index, const std::string& what) {
      const auto& source = sources_[index];
      const auto entries = root_.at("entries");
      auto place = entries.at(source.entry);
      place.set_tensor(catalog_.entries[index].tensor);
      if (source.part) {
        auto parts = place.at("parts");
        parts.at(*source.part).fail(what);
      }
      if (!source.nested.empty()) place.at(source.nested).fail(what);
      place.fail(what);
    };
    for (std::size_t i = 0; i < catalog_.entries.size(); ++i) check_entry(catalog_, i, fail);
    check_scales(catalog_, fail);
    check_packed_regions(catalog_, fail);
    check_names(catalog_, fail);
    if (is_server()) check_overlaps(catalog_, fail);
  }

  Place root_;
  Catalog catalog_;
  std::unordered_map<std::string, std::uint32_t> region_names_;
  std::vector<Source> sources_;
};

}  // namespace

Catalog parse_catalog(std::string_view json_text, const std::string& origin) {
  if (json_text.size() > kMaxCatalogBytes) {
    throw Error(Code::invalid_argument,
                fmt::format("{}: {} bytes, at most {} are supported", origin, json_text.size(), kMaxCatalogBytes));
  }
  const auto document = parse_strict_json(json_text, origin);
  return CatalogReader(document, origin).read();
}

std::string to_json(const Catalog& catalog) {
  const bool is_server = catalog.role == Role::server;
  std::string text = fmt::format("{{\n  \"format\": \"{}\",\n  \"role\": \"{}\",\n  \"rank\": {},\n", kCatalogFormat,
                                 to_string(catalog.role), catalog.rank);
  if (is_server) text += fmt::format("  \"replica\": {},\n", catalog.replica);
  text += "  \"regions\": [";
  const char* separator = "\n    ";
  for (const auto& region : catalog.regions) {
    Json json = {
        {"name", region.name}, {"bytes", region.bytes}, {"kind", kKinds[static_cast<std::size_t>(region.kind)]}};
    if (region.address != 0) json["address"] = region.address;
    text += separator + json.dump();
    separator = ",\n    ";
  }
  text += "\n  ],\n  \"entries\": [";
  separator = "\n    ";
  for (const auto& entry : catalog.entries) {
    Json json = {{"tensor", entry.tensor.str()}, {"shape", entry.shape.get()}};
    const auto axes = entry.box.axes;
    json["offset"] = std::vector<std::int64_t>(entry.box.offset.begin(), entry.box.offset.begin() + axes);
    json["extent"] = std::vector<std::int64_t>(entry.box.extent.begin(), entry.box.extent.begin() + axes);
    json[is_server ? "recipe" : "dtype"] = is_server ? to_string(entry.recipe) : to_string(entry.source_type);
    json["region"] = catalog.regions[entry.region].name;
    json["byte_offset"] = entry.byte_offset;
    json["strides_bytes"] = std::vector<std::int64_t>(entry.strides_bytes.begin(), entry.strides_bytes.begin() + axes);
    if (entry.scales) json["scales"] = *entry.scales;
    if (entry.tensor_scale) json["tensor_scale"] = *entry.tensor_scale;
    if (const auto& packed = entry.packed_scales) {
      json["packed_scales"] = {{"region", catalog.regions[packed->region].name},
                               {"byte_offset", packed->byte_offset},
                               {"group_stride_bytes", packed->group_stride_bytes}};
    }
    if (entry.is_scales) json["is_scales"] = true;
    if (entry.landing != Landing::direct) json["landing"] = to_string(entry.landing);
    if (!entry.parameter.empty()) json["parameter"] = entry.parameter.str();
    text += separator + json.dump();
    separator = ",\n    ";
  }
  return text + "\n  ]\n}\n";
}

}  // namespace weightcast

// A catalog says what one rank holds: its shards, where they lie, in which number format. It is also the name map:
// an entry ties a box of a checkpoint tensor to an extent of this rank's memory, so fused projections, expert
// stacks and tensor-parallel slices are just entries, whoever wrote them (a person, a rule, an engine tracer).
// The JSON form is in schedule/FORMATS.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "quant/recipe.h"
#include "schedule/box.h"
#include "schedule/shared.h"
#include "transport/memory.h"

namespace weightcast {

enum class Role : std::uint8_t { trainer = 0, server = 1 };
[[nodiscard]] std::string_view to_string(Role role) noexcept;

// How bytes reach the engine's own memory.
enum class Landing : std::uint8_t {
  direct = 0,          // the entry's extent is what the engine reads
  swapped_halves = 1,  // direct, but the engine stores the halves of this fused parameter in the other order:
                       // the entry's offset already says so; the class is there for people and checks
  staged_repair = 2,   // the engine post-processes from staging to live; commit() leaves the copy to the host
};

[[nodiscard]] std::string_view to_string(Landing landing) noexcept;

struct Region {
  std::string name;
  std::uint64_t bytes = 0;
  MemoryKind kind = MemoryKind::host;
  std::uint64_t address = 0;  // in the process that owns it; never sent, not part of the digest
};

// Where a commit also writes an entry's scales, as DeepGEMM reads them on Blackwell (quant/packed_scales.h): the word
// of the box's first row and column. The columns of the box begin at a group of the array's.
struct PackedScales {
  std::uint32_t region = 0;
  std::uint64_t byte_offset = 0;
  std::uint64_t group_stride_bytes = 0;  // from four blocks of columns to the next four
  friend bool operator==(const PackedScales&, const PackedScales&) = default;
};

struct Entry {
  SharedText tensor;                          // checkpoint name
  SharedList<std::int64_t> shape;             // of the whole tensor
  Box box;                                    // the part held here
  SourceType source_type = SourceType::bf16;  // a trainer's
  Recipe recipe = Recipe::bf16;               // a server's
  std::uint32_t region = 0;
  std::uint64_t byte_offset = 0;                       // of the box's first element in the region
  std::array<std::int64_t, kMaxAxes> strides_bytes{};  // per axis, of stored elements; positive on a server
  std::optional<std::uint32_t> scales;                 // the entry of this one's scales: one per block of the box
  std::optional<std::uint32_t> tensor_scale;           // and of nvfp4_tensor_scale, where the recipe has one
  std::optional<PackedScales> packed_scales;           // of fp8_e4m3_128x128_ue8m0, beside its scales
  bool is_scales = false;  // this entry holds the scales of `tensor` under `recipe`; its box counts blocks
  Landing landing = Landing::direct;
  SharedText parameter;  // the engine's name, for messages; may be empty
};

struct Catalog {
  Role role = Role::trainer;
  std::uint32_t rank = 0;     // among the ranks of its role
  std::uint32_t replica = 0;  // a server's
  std::vector<Region> regions;
  SharedList<Entry> entries;  // ranks that hold the same may share one list
};

// "trainer 2", "server 5 (replica 1)"
[[nodiscard]] std::string name_of(const Catalog& catalog);

// Parses and checks one catalog: every box within its shape, every extent within its region, scales where the
// recipe needs them, block-aligned boxes for blocked recipes, no two entries of a server that overlap in a region
// (a trainer's may: tied weights), no tensor box twice. "parts" and nested "scales" (see FORMATS.md) are expanded
// into entries here. Throws Error{invalid_argument} naming `origin`, the tensor and the JSON pointer.
[[nodiscard]] Catalog parse_catalog(std::string_view json_text, const std::string& origin);
[[nodiscard]] std::string to_json(const Catalog& catalog);  // addresses are written only if not 0

// Over everything but addresses: two processes that agree on it mean the same.
[[nodiscard]] std::uint64_t digest_of(const Catalog& catalog);
// In two steps, for ranks that share a list of entries.
[[nodiscard]] std::uint64_t digest_of(const SharedList<Entry>& entries, Role role);
[[nodiscard]] std::uint64_t digest_of(const Catalog& catalog, std::uint64_t digest_of_entries);

// Bytes of one stored element, or one scale, of a server's entry.
[[nodiscard]] std::uint64_t stored_bytes(const Entry& entry) noexcept;
// A box of a server's entry in stored elements (blocks.h), or in scales.
[[nodiscard]] Box stored_box(const Entry& entry, const Box& box) noexcept;

// First byte of a stored element (inside stored_box(entry, entry.box)) relative to the region's start.
[[nodiscard]] std::uint64_t byte_at(const Entry& entry, const std::array<std::int64_t, kMaxAxes>& element) noexcept;

// The digest seed's key for a tensor's values or scales.
[[nodiscard]] std::uint64_t digest_key(std::string_view tensor, bool is_scales) noexcept;

}  // namespace weightcast

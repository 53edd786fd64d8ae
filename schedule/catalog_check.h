// What must hold of a catalog's entries, whoever made them. For the .cpp files of this folder.
#pragma once

#include <functional>
#include <string>

#include "schedule/catalog.h"

namespace weightcast {

inline constexpr std::size_t kMaxEntries = 1U << 20;
inline constexpr std::size_t kMaxRegions = 1U << 16;
inline constexpr std::size_t kMaxNameBytes = 1024;
inline constexpr std::uint32_t kMaxRank = 1U << 20;

// a * b + sum, into sum. False on overflow: sum is then unspecified.
[[nodiscard]] inline bool multiply_add(std::int64_t& sum, std::int64_t a, std::int64_t b) noexcept {
  std::int64_t product = 0;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(sum, product, &sum);
}

[[nodiscard]] std::uint64_t element_bytes(const Catalog& catalog, const Entry& entry) noexcept;

// The bytes [begin, end) of the region between which the entry lies; nothing when that is not a range of it or
// when the arithmetic overflows.
struct ByteRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
[[nodiscard]] std::optional<ByteRange> bounding_range(const Entry& entry, std::uint64_t element_bytes,
                                                      std::uint64_t region_bytes) noexcept;

// Each calls fail(entry index, what), which throws, at the first violation.
using Fail = std::function<void(std::size_t, const std::string&)>;
void check_entry(const Catalog& catalog, std::size_t index, const Fail& fail);
// Every entry of scales belongs to one entry of values, and lies on its blocks.
void check_scales(const Catalog& catalog, const Fail& fail);
// Packed scales are in regions that hold nothing else: trainers do not write there.
void check_packed_regions(const Catalog& catalog, const Fail& fail);
// No tensor box twice, no tensor with two shapes.
void check_names(const Catalog& catalog, const Fail& fail);
// No byte of a region in two entries, exactly, interleaved strides included.
void check_overlaps(const Catalog& catalog, const Fail& fail);

}  // namespace weightcast

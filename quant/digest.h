// The digest of landed bytes: adds up, so any way of cutting the work gives the same value.
//
//   digest = sum over words of mix(word, index, seed)   modulo 2^64
//
// A row of a destination is cut into 8-byte little-endian words; the bytes of a word outside the digested range
// count as zero. `index` is the word's logical position: row * words_per_row + word. mix is
//   x = word ^ (seed + index * 0x9E3779B97F4A7C15);   (lo32(x) + 1) * (hi32(x) + 2^32)   modulo 2^64
// which changes with any change confined to one half of the word, whatever the other half is.
// It finds accidents (lost, stale, torn, misplaced bytes), not attackers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weightcast {

using Digest = std::uint64_t;

// A seed for one destination entry of one version: stale bytes of another version do not match.
[[nodiscard]] Digest digest_seed(std::uint64_t version, std::uint64_t entry) noexcept;

// A box of rows inside a destination of `words_per_row` words a row, starting at `first_row` and
// `first_byte` (a byte offset in the row).
struct DigestFrame {
  Digest seed = 0;
  std::uint64_t words_per_row = 0;
  std::uint64_t first_row = 0;
  std::uint64_t first_byte = 0;
};

// `rows` rows of `row_bytes` bytes, `row_stride` bytes apart in memory, any alignment.
[[nodiscard]] Digest digest_rows(const std::byte* memory, std::uint64_t rows, std::uint64_t row_bytes,
                                 std::int64_t row_stride, const DigestFrame& frame) noexcept;

}  // namespace weightcast

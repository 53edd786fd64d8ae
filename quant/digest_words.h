// The parts of the digest that casts share. Internal to quant/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/digest.h"

namespace weightcast {

inline constexpr std::uint64_t kDigestGolden = 0x9E3779B97F4A7C15;

// The sum of mix over `count` whole words (8 bytes each, any alignment); `key` belongs to the first of them.
using MixWords = Digest (*)(const std::byte* words, std::uint64_t count, std::uint64_t key);
[[nodiscard]] Digest mix_words(const std::byte* words, std::uint64_t count, std::uint64_t key) noexcept;

// Whether rows that lie behind each other in memory do so in the frame too: several are one long row then.
[[nodiscard]] inline bool are_gapless(std::uint64_t row_bytes, std::int64_t row_stride,
                                      const DigestFrame& frame) noexcept {
  return row_bytes != 0 && row_stride == static_cast<std::int64_t>(row_bytes) && frame.first_byte == 0 &&
         frame.words_per_row * sizeof(std::uint64_t) == row_bytes;
}

// One row of a frame: `row` counts from frame.first_row.
[[nodiscard]] Digest digest_row(const std::byte* memory, std::uint64_t row_bytes, std::uint64_t row,
                                const DigestFrame& frame, MixWords mix) noexcept;

}  // namespace weightcast

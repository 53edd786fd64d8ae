// What changed between two versions of a run of bytes: applied to the old one it gives the new one, and a pass that
// only reads says beforehand whether it will. Applying twice is applying once.
//
// Encoded, little-endian, each part beginning at a multiple of 8:
//
//   bytes, changes     2 x u64      of the run; of it those that differ
//   before, after      2 x u64      digests of the run as one row: digest_rows() of a frame of ceil(bytes / 8) words,
//                                   whose seed is the run's
//   first              u32 each     of chunk c, and one more at the end: its changes are first[c] to first[c + 1]
//   position           u16 each     in its chunk of 65536 bytes, ascending
//   value              u8 each      the new byte
//
// No sender makes deltas yet, and no landing takes them: this is the format, its reference on the CPU and the kernel
// that applies it (quant/gpu.h). Every changed byte costs 3, so a delta is smaller than the run below a third of
// changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/digest.h"
#include "transport/base/status.h"

namespace weightcast {

inline constexpr std::uint64_t kDeltaChunkBytes = 65536;

// An encoded delta that has been checked; borrows its bytes.
struct DeltaView {
  std::uint64_t bytes = 0;
  std::uint64_t changes = 0;
  Digest before = 0;
  Digest after = 0;
  std::uint64_t chunks = 0;
  const std::byte* first = nullptr;
  const std::byte* position = nullptr;
  const std::byte* value = nullptr;
};

// Both runs have the same length, below 2^32 changes. Allocates: not for the way of an update.
[[nodiscard]] std::vector<std::byte> encode_delta(std::span<const std::byte> before, std::span<const std::byte> after,
                                                  Digest seed);
// Whether `encoded` is a delta of a run of `bytes` bytes that stays inside it; code corrupted says what is wrong.
[[nodiscard]] Status read_delta(std::span<const std::byte> encoded, std::uint64_t bytes, DeltaView& view);
// The digest that `live` will have when the delta is applied to it, of its present digest and the words that change.
[[nodiscard]] Digest digest_after(const DeltaView& delta, const std::byte* live, Digest present, Digest seed) noexcept;
void apply_delta(const DeltaView& delta, std::byte* live) noexcept;

}  // namespace weightcast

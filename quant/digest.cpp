#include "quant/digest.h"

#include <algorithm>
#include <cstring>

namespace weightcast {
namespace {

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;
constexpr std::uint64_t kWordBytes = 8;

std::uint64_t mix(std::uint64_t word, std::uint64_t key) noexcept {
  const std::uint64_t x = word ^ key;
  return ((x & 0xFFFFFFFF) + 1) * ((x >> 32) + (1ULL << 32));
}

// `length` bytes placed at `at` within a word of zeros.
std::uint64_t partial_word(const std::byte* bytes, std::uint64_t at, std::uint64_t length) noexcept {
  std::uint64_t word = 0;
  std::memcpy(reinterpret_cast<std::byte*>(&word) + at, bytes, length);
  return word;
}

}  // namespace

Digest digest_seed(std::uint64_t version, std::uint64_t entry) noexcept {
  std::uint64_t x = version * kGolden + entry;  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

Digest digest_rows(const std::byte* memory, std::uint64_t rows, std::uint64_t row_bytes, std::int64_t row_stride,
                   const DigestFrame& frame) noexcept {
  Digest sum = 0;
  for (std::uint64_t row = 0; row < rows; ++row) {
    const std::byte* next = memory + static_cast<std::int64_t>(row) * row_stride;
    std::uint64_t left = row_bytes;
    std::uint64_t key =
        frame.seed + ((frame.first_row + row) * frame.words_per_row + frame.first_byte / kWordBytes) * kGolden;
    if (const std::uint64_t at = frame.first_byte % kWordBytes; at != 0 && left != 0) {
      const std::uint64_t head = std::min(kWordBytes - at, left);
      sum += mix(partial_word(next, at, head), key);
      next += head;
      left -= head;
      key += kGolden;
    }
    for (; left >= kWordBytes; left -= kWordBytes, next += kWordBytes, key += kGolden) {
      std::uint64_t word = 0;
      std::memcpy(&word, next, kWordBytes);
      sum += mix(word, key);
    }
    if (left != 0) sum += mix(partial_word(next, 0, left), key);
  }
  return sum;
}

}  // namespace weightcast

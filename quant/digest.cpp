#include "quant/digest.h"

#include <algorithm>
#include <cstring>

#include "quant/digest_words.h"
#include "quant/row_kernels.h"

namespace weightcast {
namespace {

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
  std::uint64_t x = version * kDigestGolden + entry;  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

Digest mix_words(const std::byte* words, std::uint64_t count, std::uint64_t key) noexcept {
  Digest sum = 0;
  for (; count != 0; --count, words += kWordBytes, key += kDigestGolden) {
    std::uint64_t word = 0;
    std::memcpy(&word, words, kWordBytes);
    sum += mix(word, key);
  }
  return sum;
}

Digest digest_row(const std::byte* memory, std::uint64_t row_bytes, std::uint64_t row, const DigestFrame& frame,
                  MixWords mix_whole) noexcept {
  const std::uint64_t first_word = (frame.first_row + row) * frame.words_per_row + frame.first_byte / kWordBytes;
  std::uint64_t key = frame.seed + first_word * kDigestGolden;
  Digest sum = 0;
  if (const std::uint64_t at = frame.first_byte % kWordBytes; at != 0 && row_bytes != 0) {
    const std::uint64_t head = std::min(kWordBytes - at, row_bytes);
    sum += mix(partial_word(memory, at, head), key);
    memory += head;
    row_bytes -= head;
    key += kDigestGolden;
  }
  const std::uint64_t whole = row_bytes / kWordBytes;
  sum += mix_whole(memory, whole, key);
  if (const std::uint64_t tail = row_bytes % kWordBytes; tail != 0) {
    sum += mix(partial_word(memory + whole * kWordBytes, 0, tail), key + whole * kDigestGolden);
  }
  return sum;
}

Digest digest_rows(const std::byte* memory, std::uint64_t rows, std::uint64_t row_bytes, std::int64_t row_stride,
                   const DigestFrame& frame) noexcept {
  const RowKernels* const kernels = best_row_kernels();
  const MixWords mix_whole = kernels == nullptr ? mix_words : kernels->mix_words;
  if (are_gapless(row_bytes, row_stride, frame)) return digest_row(memory, rows * row_bytes, 0, frame, mix_whole);
  Digest sum = 0;
  for (std::uint64_t row = 0; row < rows; ++row) {
    sum += digest_row(memory + static_cast<std::int64_t>(row) * row_stride, row_bytes, row, frame, mix_whole);
  }
  return sum;
}

}  // namespace weightcast

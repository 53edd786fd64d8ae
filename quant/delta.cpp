#include "quant/delta.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace weightcast {
namespace {

constexpr std::uint64_t kDeltaWord = 8;
constexpr std::uint64_t kHeaderBytes = 4 * kDeltaWord;

constexpr std::uint64_t padded(std::uint64_t bytes) { return (bytes + kDeltaWord - 1) / kDeltaWord * kDeltaWord; }

template <class Number>
Number number_at(const std::byte* numbers, std::uint64_t index) noexcept {
  Number number = 0;
  std::memcpy(&number, numbers + index * sizeof number, sizeof number);
  return number;
}

template <class Number>
void put(std::byte* numbers, std::uint64_t index, std::uint64_t value) noexcept {
  const auto number = static_cast<Number>(value);
  std::memcpy(numbers + index * sizeof number, &number, sizeof number);
}

// Where the parts stand.
struct Layout {
  std::uint64_t chunks = 0;
  std::uint64_t position = 0;
  std::uint64_t value = 0;
  std::uint64_t end = 0;

  Layout(std::uint64_t bytes, std::uint64_t changes)
      : chunks((bytes + kDeltaChunkBytes - 1) / kDeltaChunkBytes),
        position(kHeaderBytes + padded((chunks + 1) * sizeof(std::uint32_t))),
        value(position + padded(changes * sizeof(std::uint16_t))),
        end(value + padded(changes)) {}
};

Digest digest_of_row(const std::byte* memory, std::uint64_t bytes, std::uint64_t first_byte, std::uint64_t words,
                     Digest seed) noexcept {
  return digest_rows(memory, 1, bytes, 0, {seed, words, 0, first_byte});
}

Status corrupted(std::string_view cause) {
  return {Code::corrupted, fmt::format("the delta is not valid: {}: ask for the whole version", cause)};
}

// Calls visit(byte of the run, new byte) in ascending order.
template <class Visit>
void for_each_change(const DeltaView& delta, Visit&& visit) {
  for (std::uint64_t chunk = 0; chunk < delta.chunks; ++chunk) {
    const auto end = number_at<std::uint32_t>(delta.first, chunk + 1);
    for (auto at = number_at<std::uint32_t>(delta.first, chunk); at < end; ++at) {
      visit(chunk * kDeltaChunkBytes + number_at<std::uint16_t>(delta.position, at), delta.value[at]);
    }
  }
}

}  // namespace

std::vector<std::byte> encode_delta(std::span<const std::byte> before, std::span<const std::byte> after, Digest seed) {
  const std::uint64_t bytes = after.size();
  std::uint64_t changes = 0;
  for (std::uint64_t at = 0; at < bytes; ++at) changes += before[at] != after[at] ? 1 : 0;
  const Layout layout(bytes, changes);
  std::vector<std::byte> encoded(layout.end);
  std::byte* const header = encoded.data();
  put<std::uint64_t>(header, 0, bytes);
  put<std::uint64_t>(header, 1, changes);
  const std::uint64_t words = padded(bytes) / kDeltaWord;
  put<std::uint64_t>(header, 2, digest_of_row(before.data(), bytes, 0, words, seed));
  put<std::uint64_t>(header, 3, digest_of_row(after.data(), bytes, 0, words, seed));
  std::uint64_t done = 0;
  for (std::uint64_t at = 0; at < bytes; ++at) {
    if (at % kDeltaChunkBytes == 0) put<std::uint32_t>(header + kHeaderBytes, at / kDeltaChunkBytes, done);
    if (before[at] == after[at]) continue;
    put<std::uint16_t>(header + layout.position, done, at % kDeltaChunkBytes);
    encoded[layout.value + done] = after[at];
    ++done;
  }
  put<std::uint32_t>(header + kHeaderBytes, layout.chunks, done);
  return encoded;
}

Status read_delta(std::span<const std::byte> encoded, std::uint64_t bytes, DeltaView& view) {
  if (encoded.size() < kHeaderBytes) return corrupted(fmt::format("{} bytes are no header", encoded.size()));
  view.bytes = number_at<std::uint64_t>(encoded.data(), 0);
  view.changes = number_at<std::uint64_t>(encoded.data(), 1);
  view.before = number_at<std::uint64_t>(encoded.data(), 2);
  view.after = number_at<std::uint64_t>(encoded.data(), 3);
  if (view.bytes != bytes) return corrupted(fmt::format("it is of {} bytes, the memory has {}", view.bytes, bytes));
  if (view.changes > view.bytes || view.changes > UINT32_MAX) return corrupted("it has more changes than bytes");
  const Layout layout(view.bytes, view.changes);
  if (encoded.size() != layout.end) {
    return corrupted(fmt::format("it should have {} bytes and has {}", layout.end, encoded.size()));
  }
  view.chunks = layout.chunks;
  view.first = encoded.data() + kHeaderBytes;
  view.position = encoded.data() + layout.position;
  view.value = encoded.data() + layout.value;
  std::uint32_t begin = number_at<std::uint32_t>(view.first, 0);
  if (begin != 0) return corrupted("its first chunk does not begin at its first change");
  for (std::uint64_t chunk = 0; chunk < view.chunks; ++chunk) {
    const auto end = number_at<std::uint32_t>(view.first, chunk + 1);
    if (end < begin || end > view.changes) return corrupted(fmt::format("chunk {} ends before it begins", chunk));
    const std::uint64_t length = std::min(kDeltaChunkBytes, bytes - chunk * kDeltaChunkBytes);
    std::int64_t last = -1;
    for (; begin < end; ++begin) {
      const std::int64_t position = number_at<std::uint16_t>(view.position, begin);
      if (position <= last || position >= static_cast<std::int64_t>(length)) {
        return corrupted(fmt::format("change {} is at byte {} of its chunk of {}", begin, position, length));
      }
      last = position;
    }
  }
  if (begin != view.changes) return corrupted("its chunks have fewer changes than it");
  return {};
}

Digest digest_after(const DeltaView& delta, const std::byte* live, Digest present, Digest seed) noexcept {
  constexpr std::uint64_t kNone = ~std::uint64_t{0};
  const std::uint64_t words = padded(delta.bytes) / kDeltaWord;
  Digest sum = present;
  std::uint64_t word = kNone;
  std::array<std::byte, kDeltaWord> next{};
  const auto length = [&] { return std::min(kDeltaWord, delta.bytes - word * kDeltaWord); };
  const auto close = [&] {
    if (word != kNone) sum += digest_of_row(next.data(), length(), word * kDeltaWord, words, seed);
  };
  for_each_change(delta, [&](std::uint64_t at, std::byte value) {
    if (at / kDeltaWord != word) {
      close();
      word = at / kDeltaWord;
      std::memcpy(next.data(), live + word * kDeltaWord, length());
      sum -= digest_of_row(next.data(), length(), word * kDeltaWord, words, seed);
    }
    next[at % kDeltaWord] = value;
  });
  close();
  return sum;
}

void apply_delta(const DeltaView& delta, std::byte* live) noexcept {
  for_each_change(delta, [&](std::uint64_t at, std::byte value) { live[at] = value; });
}

}  // namespace weightcast

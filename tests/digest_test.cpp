#include "quant/digest.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

using namespace weightcast;

namespace {
std::vector<std::byte> random_bytes(std::size_t count) {
  std::mt19937 random(7);
  std::vector<std::byte> bytes(count);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}
const DigestFrame kFrame{digest_seed(3, 11), 8, 0, 0};  // rows of 60 bytes: 8 words, the last padded
}  // namespace

TEST_CASE("the digest of a whole is the sum of its parts, cut anywhere at words") {
  const auto bytes = random_bytes(4 * 60);
  const Digest all = digest_rows(bytes.data(), 4, 60, 60, kFrame);
  for (std::uint64_t row = 0; row <= 4; ++row) {
    for (std::uint64_t cut = 0; cut <= 56; cut += 8) {
      auto below = kFrame;
      below.first_row = row;
      auto right = kFrame;
      right.first_byte = cut;
      auto below_right = below;
      below_right.first_byte = cut;
      const auto* lower = bytes.data() + row * 60;
      const Digest sum =
          digest_rows(bytes.data(), row, cut, 60, kFrame) + digest_rows(bytes.data() + cut, row, 60 - cut, 60, right) +
          digest_rows(lower, 4 - row, cut, 60, below) + digest_rows(lower + cut, 4 - row, 60 - cut, 60, below_right);
      CHECK(sum == all);
    }
  }
}

TEST_CASE("rows that fill a frame without gaps have the digest of the same rows apart") {
  constexpr std::size_t kRowBytes = 64;
  constexpr std::size_t kApart = 72;
  for (const std::size_t rows : {1, 2, 5, 33}) {
    const auto gapless = random_bytes(rows * kRowBytes);
    std::vector<std::byte> apart(rows * kApart);
    for (std::size_t row = 0; row < rows; ++row) {
      std::copy_n(gapless.begin() + static_cast<std::ptrdiff_t>(row * kRowBytes), kRowBytes,
                  apart.begin() + static_cast<std::ptrdiff_t>(row * kApart));
    }
    const DigestFrame frame{digest_seed(1, 2), kRowBytes / 8, 7, 0};
    CHECK(digest_rows(gapless.data(), rows, kRowBytes, kRowBytes, frame) ==
          digest_rows(apart.data(), rows, kRowBytes, kApart, frame));
  }
}

TEST_CASE("every flipped bit, swapped word, missing row and older version changes the digest") {
  auto bytes = random_bytes(4 * 60);
  const Digest all = digest_rows(bytes.data(), 4, 60, 60, kFrame);
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    CHECK(digest_rows(bytes.data(), 4, 60, 60, kFrame) != all);
    bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
  auto swapped = bytes;
  std::swap_ranges(swapped.begin(), swapped.begin() + 8, swapped.begin() + 8);
  CHECK(digest_rows(swapped.data(), 4, 60, 60, kFrame) != all);
  auto lost = bytes;
  std::fill(lost.begin() + 60, lost.begin() + 120, std::byte{0});
  CHECK(digest_rows(lost.data(), 4, 60, 60, kFrame) != all);
  auto older = kFrame;
  older.seed = digest_seed(2, 11);
  CHECK(digest_rows(bytes.data(), 4, 60, 60, older) != all);
}

#include "quant/delta.h"

#include <doctest/doctest.h>

#include <random>

using namespace weightcast;

namespace {

constexpr Digest kSeed = 0x5EED;

struct Versions {
  std::vector<std::byte> before;
  std::vector<std::byte> after;
};

// So many bytes, of which one in `rarity` differs, and the first and the last.
Versions versions(std::uint64_t bytes, std::uint64_t rarity) {
  std::mt19937_64 random(bytes + rarity);
  Versions made{std::vector<std::byte>(bytes), {}};
  for (auto& byte : made.before) byte = static_cast<std::byte>(random());
  made.after = made.before;
  for (std::uint64_t at = 0; at < bytes; ++at) {
    if (at == 0 || at + 1 == bytes || random() % rarity == 0) made.after[at] ^= std::byte{0x40};
  }
  return made;
}

Digest digest_of(const std::vector<std::byte>& bytes) {
  return digest_rows(bytes.data(), 1, bytes.size(), 0, {kSeed, (bytes.size() + 7) / 8, 0, 0});
}

}  // namespace

TEST_CASE("a delta makes the new version of the old one, and says its digest before it is applied") {
  for (const std::uint64_t bytes : {1, 8, 13, 65535, 65536, 65537, 300'001}) {
    for (const std::uint64_t rarity : {2, 50, 1'000'000'000}) {
      CAPTURE(bytes);
      CAPTURE(rarity);
      const Versions run = versions(bytes, rarity);
      const auto encoded = encode_delta(run.before, run.after, kSeed);
      DeltaView delta;
      REQUIRE(read_delta(encoded, bytes, delta).ok());
      CHECK(delta.before == digest_of(run.before));
      CHECK(delta.after == digest_of(run.after));
      auto live = run.before;
      CHECK(digest_after(delta, live.data(), delta.before, kSeed) == delta.after);
      CHECK((live == run.before));
      apply_delta(delta, live.data());
      CHECK((live == run.after));
      apply_delta(delta, live.data());
      CHECK((live == run.after));
    }
  }
}

TEST_CASE("the digest tells that a delta is of another version than the one that is there") {
  Versions run = versions(70'000, 40);
  const auto encoded = encode_delta(run.before, run.after, kSeed);
  DeltaView delta;
  REQUIRE(read_delta(encoded, run.before.size(), delta).ok());
  run.before[69'123] ^= std::byte{1};
  if (run.before[69'123] == run.after[69'123]) run.before[69'123] ^= std::byte{2};
  CHECK(digest_after(delta, run.before.data(), digest_of(run.before), kSeed) != delta.after);
}

TEST_CASE("versions that are alike have a delta without changes") {
  const Versions run = versions(100, 3);
  const auto encoded = encode_delta(run.before, run.before, kSeed);
  DeltaView delta;
  REQUIRE(read_delta(encoded, 100, delta).ok());
  CHECK(delta.changes == 0);
  CHECK(digest_after(delta, run.before.data(), delta.before, kSeed) == delta.before);
}

TEST_CASE("bytes that would write beside the run, or are cut short, are no delta") {
  const Versions run = versions(70'000, 40);
  const auto encoded = encode_delta(run.before, run.after, kSeed);
  DeltaView delta;
  REQUIRE(read_delta(encoded, 70'000, delta).ok());
  CHECK(read_delta(encoded, 70'001, delta).code() == Code::corrupted);
  CHECK(read_delta(std::span(encoded).first(encoded.size() - 1), 70'000, delta).code() == Code::corrupted);
  CHECK(read_delta(std::span(encoded).first(3), 70'000, delta).code() == Code::corrupted);
  const auto changed = [&](std::size_t at, std::byte value) {
    auto wrong = encoded;
    wrong[at] = value;
    DeltaView view;
    return read_delta(wrong, 70'000, view).code();
  };
  CHECK(changed(8, encoded[8] ^ std::byte{1}) == Code::corrupted);     // the number of changes
  CHECK(changed(32, std::byte{1}) == Code::corrupted);                 // where the first chunk begins
  CHECK(changed(36 + 3, std::byte{0x7F}) == Code::corrupted);          // where it ends
  const std::size_t last_position = 48 + 2 * (delta.changes - 1) + 1;  // its upper half, in a chunk of 4464 bytes
  CHECK(changed(last_position, std::byte{0xFF}) == Code::corrupted);
}

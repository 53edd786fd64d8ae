#include "transport/card.h"

#include <doctest/doctest.h>

using namespace weightcast;

namespace {

Bytes sample_card() {
  static const Bytes address(40, std::byte{1});
  static const Bytes key(24, std::byte{2});
  return write_card({address, {{64, 0x1000, MemoryKind::host, key}, {4096, 0x20000, MemoryKind::cuda, key}}});
}

void check_refused(const Bytes& bytes, const char* why) {
  CHECK_THROWS_WITH_AS(static_cast<void>(parse_card(bytes)), doctest::Contains(why), Error);
}

Bytes with(std::size_t at, int value) {
  Bytes bytes = sample_card();
  bytes[at] = static_cast<std::byte>(value);
  return bytes;
}

}  // namespace

TEST_CASE("a card is read as it was written, without copies") {
  const Bytes bytes = sample_card();
  const Card card = parse_card(bytes);
  CHECK(card.worker_address.size() == 40);
  CHECK(card.worker_address.data() == bytes.data() + 24);
  REQUIRE(card.regions.size() == 2);
  CHECK(card.regions[1].bytes == 4096);
  CHECK(card.regions[1].base_address == 0x20000);
  CHECK(card.regions[1].kind == MemoryKind::cuda);
  CHECK(card.regions[1].rkey.size() == 24);
  CHECK(write_card(card) == bytes);
}

TEST_CASE("a card that is cut anywhere, or has a byte too many, is refused") {
  const Bytes bytes = sample_card();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CHECK_THROWS_AS(static_cast<void>(parse_card(std::span(bytes).first(length))), Error);
  }
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  check_refused(longer, "card: says");
}

TEST_CASE("each wrong field is refused by name") {
  check_refused(with(0, 'X'), "no card");
  check_refused(with(4, 2), "version 2");
  check_refused(with(8, 9), "card: says 9 bytes");
  check_refused(with(16, 0xff), "worker address needs");
  check_refused(with(16, 0), "empty worker address");
  check_refused(with(23, 0xff), "regions do not fit");
  check_refused(with(20, 1), "after its last region");
  const std::size_t region = 24 + 40;
  check_refused(with(region, 0), "no memory region");
  check_refused(with(region + 16, 2), "unknown memory kind 2");
  check_refused(with(region + 20, 0), "region");
  check_refused(with(region + 20, 0xff), "rkey needs");
}

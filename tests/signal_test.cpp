#include "plugin/signal.h"

#include <doctest/doctest.h>

#include <vector>

using namespace weightcast;

TEST_CASE("a signal reads back as itself, at exactly its length") {
  Signal signal{0x1122334455667788, 9, Role::server, 3, 4, 5, 1ULL << 40, 0xFEDCBA9876543210};
  CHECK(std::get<Signal>(parse_fabric_message(encode(signal))) == signal);
  signal.role = Role::trainer;
  const auto bytes = encode(signal);
  const auto parsed = parse_fabric_message(bytes);
  REQUIRE(std::holds_alternative<Signal>(parsed));
  CHECK(std::get<Signal>(parsed) == signal);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CHECK(std::holds_alternative<std::monostate>(parse_fabric_message(std::span(bytes).first(length))));
  }
  std::vector<std::byte> longer(bytes.begin(), bytes.end());
  longer.resize(bytes.size() + 4);
  CHECK(std::holds_alternative<std::monostate>(parse_fabric_message(longer)));
}

TEST_CASE("amax values come back as a view of whole floats, none included") {
  std::vector<std::byte> message(kAmaxHeaderBytes + 2 * sizeof(float));
  encode_amax_header(message, 77, 1, 2);
  const auto parsed = parse_fabric_message(message);
  REQUIRE(std::holds_alternative<AmaxValues>(parsed));
  const auto& values = std::get<AmaxValues>(parsed);
  CHECK(values.token == 77);
  CHECK(values.from == 1);
  CHECK(values.to == 2);
  CHECK(values.values.data() == message.data() + kAmaxHeaderBytes);
  CHECK(values.values.size() == 8);
  message.resize(kAmaxHeaderBytes);
  CHECK(std::holds_alternative<AmaxValues>(parse_fabric_message(message)));
  message.resize(kAmaxHeaderBytes + 3);
  CHECK(std::holds_alternative<std::monostate>(parse_fabric_message(message)));
}

TEST_CASE("what begins otherwise is not a message of ours") {
  std::vector<std::byte> zeros(kSignalBytes);
  CHECK(std::holds_alternative<std::monostate>(parse_fabric_message(zeros)));
  CHECK(std::holds_alternative<std::monostate>(parse_fabric_message({})));
}

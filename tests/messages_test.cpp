// Messages of the control plane as bytes: what is written is read back, anything else is an Error.
#include "plugin/messages.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>

#include "transport/base/status.h"

using namespace weightcast;

namespace {

using Json = nlohmann::ordered_json;

// One of every type, every field set.
std::vector<Message> examples() {
  constexpr std::uint64_t kBig = std::numeric_limits<std::uint64_t>::max();
  Join join;
  join.run = "grpo-7";
  join.role = Role::server;
  join.rank = 3;
  join.incarnation = 0x1234567890abcdef;
  join.catalog = R"({"role": "server", "entries": []})";
  join.catalog_digest = kBig;
  join.landing = "staged";
  join.committed_version = 41;
  join.ready_version = 42;
  join.decided_version = 42;
  join.torn = true;
  const PeerCard peer{Role::server, 1, 77, {1, 2, 3}, {{0, 4096}, {1, 0}}};
  return {join,
          CardOffer{{0, 255, 7}, {{0, 0}, {2, 1ULL << 40U}}},
          Connected{2, 0.125, {"server 0 over posix", "server 1 over tcp"}},
          Heartbeat{123456789, 1 << 20},
          Pushed{43},
          Armed{43, 17},
          Sent{43, 17, 1'000'000'000, 1.5, 0.1},
          Ready{43, 17, 500'000'000, 0.01},
          Committed{43, 2.75},
          Quiesced{43, 17},
          PeerLost{Role::trainer, 2, "endpoint timeout"},
          Failed{0, 0, Code::corrupted, "tensor 'wte': NaN at row 3"},
          Leave{},
          Refused{Code::refused, "another run"},
          Welcome{99},
          Rejoin{},
          TableOffer{5, {9, 8, 7}, {peer, peer}, {77, kBig}},
          Begin{44, 1},
          Go{44, kBig},
          Echo{123456789},
          Commit{44},
          Abort{44, 17, Code::timed_out, "trainer 1 did not send within 60000 ms"},
          Drop{{0, 5}},
          Done{44, R"({"version": 44})"}};
}

const Message& example_of(std::string_view type) {
  static const std::vector<Message> all = examples();
  for (const auto& message : all) {
    if (type_of(message) == type) return message;
  }
  FAIL("no example of ", std::string(type));
  return all.front();
}

struct Outcome {
  Code code = Code::ok;
  std::string text;
  [[nodiscard]] bool names(std::string_view word) const { return text.find(word) != std::string::npos; }
};

// Anything but an Error of these two codes fails the test.
Outcome decode(const ControlBytes& bytes) {
  // A copy of its own, so that a sanitizer sees a read past the end.
  const ControlBytes exact(bytes);
  try {
    (void)decode_message(exact);
    return {};
  } catch (const Error& error) {
    const bool is_expected = error.code() == Code::invalid_argument || error.code() == Code::refused;
    REQUIRE_MESSAGE(is_expected, error.what());
    return {error.code(), error.what()};
  }
}

// The example of a type, changed as a map.
Outcome decode_changed(std::string_view type, const std::function<void(Json&)>& change) {
  Json object = Json::from_cbor(encode(example_of(type)));
  change(object);
  return decode(Json::to_cbor(object));
}

Outcome decode_with(std::string_view type, const std::string& field, const Json& value) {
  return decode_changed(type, [&](Json& object) { object[field] = value; });
}

}  // namespace

TEST_CASE("every message is read back as it was written") {
  std::set<std::string_view> types;
  for (const Message& message : examples()) {
    CAPTURE(std::string(type_of(message)));
    const ControlBytes bytes = encode(message);
    const Message again = decode_message(bytes);
    CHECK(again.index() == message.index());
    CHECK(encode(again) == bytes);
    types.insert(type_of(message));
  }
  CHECK(types.size() == std::variant_size_v<Message>);
  const auto join = std::get<Join>(decode_message(encode(example_of("join"))));
  CHECK(join.role == Role::server);
  CHECK(join.catalog_digest == std::numeric_limits<std::uint64_t>::max());
  CHECK(join.torn);
  const auto offer = std::get<TableOffer>(decode_message(encode(example_of("table_offer"))));
  REQUIRE(offer.peers.size() == 2);
  CHECK(offer.peers[1].card == std::vector<std::uint8_t>{1, 2, 3});
  CHECK(offer.peers[1].placements[0].byte_offset == 4096);
}

TEST_CASE("the seeds of the fuzzer are one message of each type as this build writes it") {
  const char* root = std::getenv("WEIGHTCAST_SOURCE_ROOT");
  REQUIRE(root != nullptr);
  const auto folder = std::filesystem::path(root) / "tests" / "fuzz" / "corpus" / "messages";
  const bool is_renewed = std::getenv("WEIGHTCAST_WRITE_SEEDS") != nullptr;  // after a change of the protocol
  for (const Message& message : examples()) {
    const ControlBytes bytes = encode(message);
    const auto path = folder / fmt::format("{}.cbor", type_of(message));
    if (is_renewed)
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    std::ifstream file(path, std::ios::binary);
    const ControlBytes seed{std::istreambuf_iterator<char>(file), {}};
    CAPTURE(path.string());
    CHECK(seed == bytes);
  }
}

TEST_CASE("half a message is refused at every length, and so is one with more behind it") {
  for (const Message& message : examples()) {
    CAPTURE(std::string(type_of(message)));
    ControlBytes bytes = encode(message);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      CHECK(decode(ControlBytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length))).code != Code::ok);
    }
    bytes.push_back(0);
    CHECK(decode(bytes).names("more bytes"));
  }
}

TEST_CASE("flipped bits give another valid message or an error, never more") {
  std::mt19937 random(11);
  int refused = 0;
  for (const Message& message : examples()) {
    const ControlBytes bytes = encode(message);
    for (int round = 0; round < 300; ++round) {
      ControlBytes damaged = bytes;
      for (unsigned flips = 1 + random() % 4; flips > 0; --flips) {
        damaged[random() % damaged.size()] ^= static_cast<std::uint8_t>(1U << (random() % 8));
      }
      refused += decode(damaged).code != Code::ok ? 1 : 0;
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("another protocol version is refused with both numbers and who must upgrade") {
  const Outcome newer = decode_with("heartbeat", "protocol", 9);
  CHECK(newer.code == Code::refused);
  CHECK(newer.names("protocol 9"));
  CHECK(newer.names("speaks 2"));
  CHECK(newer.names("this side"));
  CHECK(decode_with("heartbeat", "protocol", 0).names("the peer's side"));
  CHECK(decode_with("heartbeat", "protocol", 1ULL << 40U).code == Code::refused);
  // However different the rest is: here a tag, which protocol 2 has not.
  ControlBytes foreign = {0xA2, 0x68, 'p', 'r', 'o', 't', 'o', 'c', 'o', 'l', 0x03, 0x61, 'x', 0xC1, 0x00};
  CHECK(decode(foreign).code == Code::refused);
}

TEST_CASE("what is no message of ours is named so") {
  CHECK(decode({}).code == Code::invalid_argument);
  const std::string_view http = "GET / HTTP/1.1\r\n\r\n";
  CHECK(decode({http.begin(), http.end()}).names("not a message of weightcast"));
  CHECK(decode(Json::to_cbor(Json{{"type", "leave"}, {"protocol", 2}})).code == Code::invalid_argument);
  CHECK(decode_with("leave", "type", "nonsense").names("\"nonsense\""));
  CHECK(decode_with("leave", "type", 5).names("type"));
  CHECK(decode_changed("leave", [](Json& object) { object.erase("type"); }).names("type"));
}

TEST_CASE("nesting is bounded before anything recurses") {
  const ControlBytes begin = {0xA3, 0x68, 'p', 'r', 'o', 't', 'o', 'c', 'o', 'l', 0x02, 0x64, 't', 'y', 'p', 'e'};
  // Arrays, maps, tags, and the string of indefinite length inside another, of which parsers tell nobody.
  for (const std::uint8_t head : {0x81, 0xA1, 0xC1, 0x5F, 0x7F, 0x9F, 0xBF}) {
    ControlBytes bytes = begin;
    bytes.insert(bytes.end(), 1 << 20, head);
    CAPTURE(static_cast<int>(head));
    CHECK(decode(bytes).code == Code::invalid_argument);
  }
}

TEST_CASE("a length that the message does not have is refused before memory is taken for it") {
  for (const std::uint8_t head : {0x5B, 0x7B, 0x9B, 0xBB}) {
    ControlBytes bytes = {0xA3, 0x68, 'p', 'r', 'o', 't', 'o', 'c', 'o', 'l', 0x02, 0x64, 't', 'y', 'p', 'e', head};
    bytes.insert(bytes.end(), 8, 0xFF);
    CAPTURE(static_cast<int>(head));
    CHECK(decode(bytes).names("cut short"));
  }
}

TEST_CASE("fields that are missing, unknown or stand twice are named") {
  for (const Message& message : examples()) {
    const Json object = Json::from_cbor(encode(message));
    for (const auto& field : object.items()) {
      const std::string& key = field.key();
      if (key == "protocol" || key == "type") continue;
      CAPTURE(key);
      const auto missing = decode_changed(type_of(message), [&](Json& changed) { changed.erase(key); });
      CHECK(missing.names(key + " is missing"));
      const auto wrong = decode_with(type_of(message), key, Json{{"a", 1}});
      CHECK(wrong.names(key));
    }
    CHECK(decode_with(type_of(message), "extra", 1).names("\"extra\""));
  }
  // {"protocol": 2, "type": "leave", "type": "leave"}
  ControlBytes twice = encode(Leave{});
  const ControlBytes entry(twice.end() - 11, twice.end());
  twice[0] = 0xA3;
  twice.insert(twice.end(), entry.begin(), entry.end());
  CHECK(decode(twice).names("stands twice"));
}

TEST_CASE("every field is bounded") {
  CHECK(decode_with("join", "run", "").names("run"));
  CHECK(decode_with("join", "run", std::string(65, 'a')).names("run"));
  CHECK(decode_with("join", "run", "a/../b").names("run"));
  CHECK(decode_with("join", "role", "controller").names("role"));
  CHECK(decode_with("join", "rank", -1).names("rank"));
  CHECK(decode_with("join", "rank", 1.0).names("rank"));
  CHECK(decode_with("join", "rank", 1U << 20U).names("rank"));
  CHECK(decode_with("join", "incarnation", 0).names("incarnation"));
  CHECK(decode_with("join", "landing", "floating").names("landing"));
  CHECK(decode_with("join", "landing", "").names("landing"));
  CHECK(decode_with("join", "torn", 1).names("torn"));
  CHECK(decode_with("card_offer", "card", "text").names("card"));
  CHECK(decode_with("card_offer", "placements", Json::parse("[[1]]")).names("placements/0"));
  CHECK(decode_with("card_offer", "placements", Json::parse("[[0, 0], [0, -1]]")).names("placements/1/1"));
  CHECK(decode_with("card_offer", "placements", Json::parse("[[1048576, 0]]")).names("placements/0/0"));
  CHECK(decode_with("connected", "first_contact_s", -1).names("first_contact_s"));
  CHECK(decode_with("connected", "first_contact_s", std::numeric_limits<double>::infinity()).names("first_contact_s"));
  CHECK(decode_with("connected", "first_contact_s", std::nan("")).names("first_contact_s"));
  CHECK(decode_with("connected", "paths", Json::parse("[5]")).names("paths/0"));
  CHECK(decode_with("pushed", "version", 0).names("version"));
  CHECK(decode_with("sent", "bytes", (1ULL << 60U) + 1).names("bytes"));
  CHECK(decode_with("failed", "code", 0).names("code"));
  CHECK(decode_with("failed", "code", 9).names("code"));
  CHECK(decode_with("failed", "text", std::string(20000, 'a')).names("text"));
  CHECK(decode_with("failed", "text", "\x1b[31m").names("text"));
  for (const char* bad : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x7f"}) {
    CHECK(decode_with("failed", "text", bad).names("text"));
  }
  CHECK(decode_with("failed", "text", "größer als 5 €\n\t𝛼").code == Code::ok);
  CHECK(decode_with("drop", "servers", Json::parse("[1048576]")).names("servers/0"));
  CHECK(decode_with("table_offer", "quiet", Json::parse("[0]")).names("quiet/0"));
  CHECK(decode_with("begin", "token", 0).names("token"));
  const auto nested = decode_changed("table_offer", [](Json& object) { object["peers"][1]["rank"] = "one"; });
  CHECK(nested.names("peers/1: rank"));
  const auto unknown = decode_changed("table_offer", [](Json& object) { object["peers"][0]["extra"] = 1; });
  CHECK(unknown.names("\"extra\""));
}

TEST_CASE("a text for people is shortened and cleaned so that it always arrives") {
  const auto failed =
      std::get<Failed>(decode_message(encode(Failed{7, 17, Code::internal, std::string(100000, 'x') + "\xff"})));
  CHECK(failed.text.size() < 20000);
  CHECK(failed.text.ends_with("..."));
  const auto refused = std::get<Refused>(decode_message(encode(Refused{Code::refused, "a\xff\x01z €"})));
  CHECK(refused.text == "a??z €");
}

TEST_CASE("a message beyond the limit is neither written nor read") {
  Join join = std::get<Join>(example_of("join"));
  join.catalog.assign(kMaxControlBytes, ' ');
  CHECK_THROWS_WITH_AS((void)encode(join), doctest::Contains("\"join\""), Error);
  CHECK(decode(ControlBytes(kMaxControlBytes + 1)).code == Code::invalid_argument);
}

TEST_CASE("each party may send its own messages only") {
  const std::set<std::string_view> both = {"join",   "card_offer", "connected", "heartbeat",
                                           "failed", "leave",      "quiesced",  "peer_lost"};
  const std::set<std::string_view> trainers = {"pushed", "sent"};
  const std::set<std::string_view> servers = {"armed", "ready", "committed"};
  for (const Message& message : examples()) {
    const auto type = type_of(message);
    CAPTURE(std::string(type));
    CHECK(may_send(Party::trainer, message) == (both.contains(type) || trainers.contains(type)));
    CHECK(may_send(Party::server, message) == (both.contains(type) || servers.contains(type)));
    CHECK(may_send(Party::controller, message) ==
          !(both.contains(type) || trainers.contains(type) || servers.contains(type)));
  }
}

#include "plugin/messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <type_traits>
#include <utility>

#include "plugin/message_fields.h"
#include "schedule/cbor.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;  // written in order: "protocol" comes first
using Parsed = nlohmann::json;

constexpr std::array<std::string_view, std::variant_size_v<Message>> kTypes = {
    "join",        "card_offer", "connected", "heartbeat", "pushed", "armed",   "sent",    "ready",
    "committed",   "quiesced",   "peer_lost", "failed",    "leave",  "refused", "welcome", "rejoin",
    "table_offer", "begin",      "go",        "echo",      "commit", "abort",   "drop",    "done"};
constexpr int kMostDepth = 5;  // message, peers, peer, placements, placement
constexpr double kMaxTime = 1e9;
constexpr std::size_t kMaxRunBytes = 64;

// ---- text ----

// The bytes of the UTF-8 character at the start of `text`; 0 when it is none, or one that has no place in a log line.
std::size_t character_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char head = byte(0);
  if (head < 0x80) return (head >= 0x20 && head != 0x7F) || head == '\n' || head == '\t' ? 1 : 0;
  const std::size_t count = head >= 0xF0 ? 4 : head >= 0xE0 ? 3 : 2;
  if (head < 0xC2 || head > 0xF4 || text.size() < count) return 0;
  for (std::size_t i = 1; i < count; ++i) {
    if ((byte(i) & 0xC0U) != 0x80) return 0;
  }
  const bool is_overlong = (head == 0xE0 && byte(1) < 0xA0) || (head == 0xF0 && byte(1) < 0x90);
  const bool is_beyond = (head == 0xED && byte(1) >= 0xA0) || (head == 0xF4 && byte(1) >= 0x90);
  return is_overlong || is_beyond ? 0 : count;
}

bool is_words(std::string_view text) {
  while (!text.empty()) {
    const std::size_t count = character_bytes(text);
    if (count == 0) return false;
    text.remove_prefix(count);
  }
  return true;
}

// What of `text` can be said to people: at most `most_bytes`, a question mark for each byte that is no character.
std::string to_words(std::string_view text, std::size_t most_bytes = kMaxWordsBytes) {
  constexpr std::string_view kCut = "...";
  std::string words;
  while (!text.empty()) {
    const std::size_t count = character_bytes(text);
    const std::string_view next = count == 0 ? "?" : text.substr(0, count);
    if (words.size() + next.size() + kCut.size() > most_bytes) return words.append(kCut);
    words.append(next);
    text.remove_prefix(std::max<std::size_t>(count, 1));
  }
  return words;
}

bool is_run(std::string_view text) {
  return !text.empty() && text.size() <= kMaxRunBytes && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

// ---- writing ----

class Writer {
 public:
  explicit Writer(Json& object) : object_(object) {}

  template <class T>
  void natural(const char* name, T value, std::uint64_t /*least*/, std::uint64_t /*most*/) {
    object_[name] = value;
  }
  void seconds(const char* name, double value) { object_[name] = value; }
  void flag(const char* name, bool value) { object_[name] = value; }
  void role(const char* name, Role value) { object_[name] = to_string(value); }
  void code(const char* name, Code value) { object_[name] = static_cast<int>(value); }
  void token(const char* name, const std::string& text, std::span<const std::string_view> /*allowed*/) {
    object_[name] = text;
  }
  void run(const char* name, const std::string& text) { object_[name] = text; }
  void document(const char* name, const std::string& text) { object_[name] = text; }
  void words(const char* name, const std::string& text) { object_[name] = to_words(text); }
  void octets(const char* name, const std::vector<std::uint8_t>& bytes, std::uint64_t /*most_bytes*/) {
    object_[name] = Json::binary(bytes);
  }
  template <class T>
  void list(const char* name, const std::vector<T>& items, std::uint64_t /*most_items*/) {
    Json array = Json::array();
    for (const T& item : items) array.push_back(item_of(item));
    object_[name] = std::move(array);
  }

 private:
  static Json item_of(std::uint32_t rank) { return rank; }
  static Json item_of(std::uint64_t incarnation) { return incarnation; }
  static Json item_of(const std::string& text) { return to_words(text); }
  static Json item_of(const Placement& placement) {
    return Json::array({placement.card_region, placement.byte_offset});
  }
  static Json item_of(const PeerCard& peer) {
    Json object = Json::object();
    Writer writer(object);
    fields(writer, peer);
    return object;
  }

  Json& object_;
};

// ---- reading ----

class Reader {
 public:
  // `where` names the object in error texts.
  Reader(const Parsed& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) throw Error(Code::invalid_argument, where_ + " must be a map");
  }

  template <class T>
  void natural(const char* name, T& value, std::uint64_t least, std::uint64_t most) {
    value = static_cast<T>(natural_of(field(name), path(name), least, most));
  }
  void seconds(const char* name, double& value) {
    const Parsed& json = field(name);
    value = json.is_number() ? json.get<double>() : -1;
    if (!(value >= 0 && value <= kMaxTime)) must_be(path(name), fmt::format("a number from 0 to {}", kMaxTime));
  }
  void flag(const char* name, bool& value) {
    const Parsed& json = field(name);
    if (!json.is_boolean()) must_be(path(name), "true or false");
    value = json.get<bool>();
  }
  void role(const char* name, Role& value) {
    const std::string& text = text_of(field(name), path(name));
    for (const Role known : {Role::trainer, Role::server}) {
      if (text == to_string(known)) {
        value = known;
        return;
      }
    }
    must_be(path(name), "\"trainer\" or \"server\"");
  }
  void code(const char* name, Code& value) {
    // ok is no reason to fail.
    value = static_cast<Code>(natural_of(field(name), path(name), static_cast<std::uint64_t>(Code::invalid_argument),
                                         static_cast<std::uint64_t>(Code::internal)));
  }
  void token(const char* name, std::string& text, std::span<const std::string_view> allowed) {
    text = text_of(field(name), path(name));
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
      must_be(path(name), fmt::format("one of \"{}\"", fmt::join(allowed, "\", \"")));
    }
  }
  void run(const char* name, std::string& text) {
    text = text_of(field(name), path(name));
    if (!is_run(text)) must_be(path(name), "1 to 64 letters, digits, dots, dashes or underscores");
  }
  void document(const char* name, std::string& text) { text = text_of(field(name), path(name)); }
  void words(const char* name, std::string& text) { text = words_of(field(name), path(name)); }
  void octets(const char* name, std::vector<std::uint8_t>& bytes, std::uint64_t most_bytes) {
    const Parsed& json = field(name);
    if (!json.is_binary() || json.get_binary().size() > most_bytes) {
      must_be(path(name), fmt::format("a string of at most {} bytes", most_bytes));
    }
    bytes = json.get_binary();
  }
  template <class T>
  void list(const char* name, std::vector<T>& items, std::uint64_t most_items) {
    const Parsed& json = field(name);
    if (!json.is_array() || json.size() > most_items) {
      must_be(path(name), fmt::format("an array of at most {} items", most_items));
    }
    items.resize(json.size());
    for (std::size_t i = 0; i < items.size(); ++i) read_item(json[i], fmt::format("{}/{}", path(name), i), items[i]);
  }

  // Every key of the object must have been asked for.
  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
        throw Error(Code::invalid_argument, fmt::format("{} has no field \"{}\"", where_, to_words(key, 64)));
      }
    }
  }

 private:
  [[noreturn]] static void must_be(const std::string& path, const std::string& what) {
    throw Error(Code::invalid_argument, fmt::format("{} must be {}", path, what));
  }

  [[nodiscard]] std::string path(const char* name) const { return fmt::format("{}: {}", where_, name); }

  const Parsed& field(const char* name) {
    asked_.emplace_back(name);
    const auto it = object_.find(name);
    if (it == object_.end()) throw Error(Code::invalid_argument, path(name) + " is missing");
    return *it;
  }

  static std::uint64_t natural_of(const Parsed& json, const std::string& path, std::uint64_t least,
                                  std::uint64_t most) {
    if (json.is_number_unsigned()) {
      const auto number = json.get<std::uint64_t>();
      if (number >= least && number <= most) return number;
    }
    must_be(path, fmt::format("a whole number from {} to {}", least, most));
  }
  static const std::string& text_of(const Parsed& json, const std::string& path) {
    if (!json.is_string()) must_be(path, "a text");
    return json.get_ref<const std::string&>();
  }
  static const std::string& words_of(const Parsed& json, const std::string& path) {
    const std::string& text = text_of(json, path);
    if (text.size() > kMaxWordsBytes || !is_words(text)) {
      must_be(path, fmt::format("a printable UTF-8 text of at most {} bytes", kMaxWordsBytes));
    }
    return text;
  }

  static void read_item(const Parsed& json, const std::string& path, std::uint32_t& rank) {
    rank = static_cast<std::uint32_t>(natural_of(json, path, 0, kMaxRank));
  }
  static void read_item(const Parsed& json, const std::string& path, std::uint64_t& incarnation) {
    incarnation = natural_of(json, path, 1, kMaxNumber);
  }
  static void read_item(const Parsed& json, const std::string& path, std::string& text) { text = words_of(json, path); }
  static void read_item(const Parsed& json, const std::string& path, Placement& placement) {
    if (!json.is_array() || json.size() != 2) must_be(path, "an array of card region and byte offset");
    placement.card_region = static_cast<std::uint32_t>(natural_of(json[0], path + "/0", 0, kMaxRegions - 1));
    placement.byte_offset = natural_of(json[1], path + "/1", 0, kMaxBytes);
  }
  static void read_item(const Parsed& json, const std::string& path, PeerCard& peer) {
    Reader reader(json, path);
    fields(reader, peer);
    reader.finish();
  }

  const Parsed& object_;
  const std::string where_;
  std::vector<std::string_view> asked_;
};

// Every message of every version of the protocol begins like this: a map of at most 23 entries, whose first key is
// "protocol" and whose first value is a number. So a peer of another version learns why it is not understood.
std::optional<std::uint64_t> protocol_of(std::span<const std::uint8_t> bytes) {
  constexpr std::string_view kKey = "\x68protocol";
  constexpr std::size_t kValue = 1 + kKey.size();
  if (bytes.size() <= kValue || bytes[0] < 0xA1 || bytes[0] > 0xB7) return std::nullopt;
  if (!std::equal(kKey.begin(), kKey.end(), bytes.begin() + 1,
                  [](char a, std::uint8_t b) { return static_cast<std::uint8_t>(a) == b; })) {
    return std::nullopt;
  }
  const std::uint8_t head = bytes[kValue];
  if (head < 24) return head;
  const std::size_t count = head <= 27 ? std::size_t{1} << (head - 24U) : 0;
  if (count == 0 || bytes.size() - kValue - 1 < count) return std::nullopt;
  std::uint64_t version = 0;
  for (std::size_t i = 1; i <= count; ++i) version = version << 8U | bytes[kValue + i];
  return version;
}

void check_protocol(std::span<const std::uint8_t> bytes) {
  const auto version = protocol_of(bytes);
  if (!version) throw Error(Code::invalid_argument, "not a message of weightcast");
  if (*version == kProtocolVersion) return;
  throw Error(Code::refused,
              fmt::format("the peer speaks protocol {}, this process speaks {}: upgrade weightcast on {}", *version,
                          kProtocolVersion, *version > kProtocolVersion ? "this side" : "the peer's side"));
}

template <std::size_t... Index>
Message read_message(std::size_t wanted, Reader& reader, std::index_sequence<Index...> /*all*/) {
  Message message;
  const auto read_if_wanted = [&](auto index) {
    if (wanted != index) return;
    fields(reader, message.emplace<decltype(index)::value>());
  };
  (read_if_wanted(std::integral_constant<std::size_t, Index>{}), ...);
  return message;
}

}  // namespace

std::string to_string(const RankKey& key) { return fmt::format("{} {}", to_string(key.role), key.rank); }

std::string_view type_of(const Message& message) noexcept { return kTypes[message.index()]; }

bool may_send(Party party, const Message& message) {
  return std::visit(
      [party]<class M>(const M& /*message*/) {
        constexpr bool kOfBoth = Is<M, Join> || Is<M, CardOffer> || Is<M, Connected> || Is<M, Heartbeat> ||
                                 Is<M, Failed> || Is<M, Leave> || Is<M, Quiesced> || Is<M, PeerLost>;
        constexpr bool kOfTrainers = kOfBoth || Is<M, Pushed> || Is<M, Sent>;
        constexpr bool kOfServers = kOfBoth || Is<M, Armed> || Is<M, Ready> || Is<M, Committed>;
        if (party == Party::trainer) return kOfTrainers;
        if (party == Party::server) return kOfServers;
        return !kOfTrainers && !kOfServers;
      },
      message);
}

ControlBytes encode(const Message& message) {
  Json object = Json::object();
  object["protocol"] = kProtocolVersion;  // first: see protocol_of()
  object["type"] = type_of(message);
  Writer writer(object);
  std::visit([&](const auto& body) { fields(writer, body); }, message);
  ControlBytes bytes = Json::to_cbor(object);
  if (bytes.size() > kMaxControlBytes) {
    throw Error(Code::invalid_argument,
                fmt::format("a message \"{}\" of {} bytes; at most {} can be sent; spread the tensors over more ranks",
                            type_of(message), bytes.size(), kMaxControlBytes));
  }
  return bytes;
}

Message decode_message(std::span<const std::uint8_t> bytes) {
  if (bytes.size() > kMaxControlBytes) {
    throw Error(Code::invalid_argument,
                fmt::format("a message of {} bytes; at most {} are read", bytes.size(), kMaxControlBytes));
  }
  check_protocol(bytes);
  const Parsed object = parse_cbor(bytes, kMostDepth, "the message");
  const auto type = object.find("type");
  if (type == object.end() || !type->is_string()) throw Error(Code::invalid_argument, "message: type must be a text");
  const auto& name = type->get_ref<const std::string&>();
  const auto known = std::find(kTypes.begin(), kTypes.end(), name);
  if (known == kTypes.end()) {
    throw Error(Code::invalid_argument, fmt::format("message: there is no type \"{}\"", to_words(name, 64)));
  }
  Reader reader(object, fmt::format("message \"{}\"", name));
  std::string ignored;
  std::uint32_t protocol = 0;
  reader.natural("protocol", protocol, kProtocolVersion, kProtocolVersion);
  reader.document("type", ignored);
  Message message =
      read_message(static_cast<std::size_t>(known - kTypes.begin()), reader, std::make_index_sequence<kTypes.size()>());
  reader.finish();
  if (const auto* join = std::get_if<Join>(&message); join && join->role == Role::server && join->landing.empty()) {
    throw Error(Code::invalid_argument, "message \"join\": landing must be \"staged\" or \"in_place\" for a server");
  }
  return message;
}

}  // namespace weightcast

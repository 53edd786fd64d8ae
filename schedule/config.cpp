#include "schedule/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <regex>
#include <utility>
#include <variant>

#include "schedule/strict_json.h"
#include "transport/base/status.h"
#include "transport/base/units.h"

namespace weightcast {
namespace {

using Json = nlohmann::ordered_json;
using Strings = std::vector<std::string>;
using std::uint32_t;
using std::uint64_t;

// ---- the table of keys ----

struct Any {};
struct Within {
  uint64_t least = 0;
  uint64_t most = std::numeric_limits<uint32_t>::max();
  uint64_t multiple_of = 1;
};
struct OneOf {
  Strings values;
};
struct Pattern {  // each string, where there are several
  const char* pattern;
  const char* words;
};
using Rule = std::variant<Any, Within, OneOf, Pattern>;

// A captureless lambda of the right type picks its alternative.
using Field = std::variant<bool& (*)(Config&), uint32_t& (*)(Config&), uint64_t& (*)(Config&),
                           std::string& (*)(Config&), Strings& (*)(Config&)>;

struct Key {
  std::string_view section;  // empty: top level
  std::string_view name;
  Field field;
  Rule rule;
  std::string_view text;

  [[nodiscard]] std::string pointer() const {
    return section.empty() ? fmt::format("/{}", name) : fmt::format("/{}/{}", section, name);
  }
};

constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kSections = {{
    {"controller", "Who takes part, and where the controller is."},
    {"fabric", "The data plane: UCX and the interfaces that it may use."},
    {"links", "How fast this rank's links are; where every rank says so, plans share the bytes out by it and relay."},
    {"times", "Bounds of every wait, and how soon a silent rank counts as dead."},
    {"performance", "Changes how fast an update is, never its result."},
}};

constexpr Pattern kNotEmpty{"^.+$", "a text that is not empty"};
constexpr Within kWait{1, 86'400'000};
constexpr Within kCount{1, 1U << 20};
constexpr Within kRate{0, 1U << 31};

Key key(std::string_view section, std::string_view name, Field field, Rule rule, std::string_view text) {
  return {section, name, field, std::move(rule), text};
}

std::vector<Key> top_level_keys() {
  return {
      key(
          "", "run", [](Config & c) -> auto& { return c.run; },
          Pattern{"^[A-Za-z0-9._-]{1,64}$", "1 to 64 letters, digits, dots, dashes or underscores"},
          "Name of the run; trainers and servers of another run are refused."),
      key(
          "", "rank", [](Config & c) -> auto& { return c.rank; }, Within{0, 1U << 20},
          "Rank of this process among the ranks of its role; --rank and the C ABI's caller set it."),
      key(
          "", "replica", [](Config & c) -> auto& { return c.replica; }, Within{0, 1U << 20},
          "A server's replica: the set of server ranks that together hold the whole model once."),
      key(
          "", "secret_file", [](Config & c) -> auto& { return c.secret_file; }, kNotEmpty,
          "File with the shared secret that `weightcast keygen` wrote; every rank needs the same."),
      key(
          "", "landing", [](Config & c) -> auto& { return c.landing; }, OneOf{{"staged", "in_place"}},
          "staged: into shadow memory, the served version stays whole; in_place: no extra memory, engine paused."),
      key(
          "", "unused_tensors", [](Config & c) -> auto& { return c.unused_tensors; }, kNotEmpty,
          "Trainer tensors that no server takes, as patterns; * stands for any run of characters."),
      key(
          "", "log_level", [](Config & c) -> auto& { return c.log_level; },
          OneOf{{"error", "warning", "info", "debug"}}, "The least severe lines that are logged."),
  };
}

std::vector<Key> controller_keys() {
  return {
      key(
          "controller", "address", [](Config & c) -> auto& { return c.controller.address; },
          Pattern{R"(^tcp://([^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}$)",
                  "tcp://HOST:PORT, PORT from 1 to 65535"},
          "Where the controller listens and every rank dials."),
      key(
          "controller", "embedded", [](Config & c) -> auto& { return c.controller.embedded; }, Any{},
          "Trainer rank 0 runs the controller; false: a process of its own does."),
      key(
          "controller", "trainers", [](Config & c) -> auto& { return c.controller.trainers; }, kCount,
          "Number of trainer ranks."),
      key(
          "controller", "replicas", [](Config & c) -> auto& { return c.controller.replicas; }, kCount,
          "Number of server replicas."),
      key(
          "controller", "servers_per_replica", [](Config & c) -> auto& { return c.controller.servers_per_replica; },
          kCount, "Number of server ranks in each replica."),
  };
}

std::vector<Key> fabric_keys() {
  return {
      key(
          "fabric", "ucx_library", [](Config & c) -> auto& { return c.fabric.ucx_library; }, Any{},
          "Path of libucp.so.0; empty: found."),
      key(
          "fabric", "interfaces", [](Config & c) -> auto& { return c.fabric.interfaces; }, kNotEmpty,
          "Network interfaces on which UCX may listen; its ports are not authenticated, so name private ones only."),
      key(
          "fabric", "allow_emulation", [](Config & c) -> auto& { return c.fabric.allow_emulation; }, Any{},
          "Accept pairs of ranks between which UCX can only emulate one-sided puts."),
      key(
          "fabric", "same_host_shortcuts", [](Config & c) -> auto& { return c.fabric.same_host_shortcuts; }, Any{},
          "Use shared memory or direct copies between processes of one host."),
  };
}

std::vector<Key> link_keys() {
  return {
      key(
          "links", "node", [](Config & c) -> auto& { return c.links.node; }, Any{},
          "Ranks that name the same node share a host; empty: the host that this process runs on."),
      key(
          "links", "nic_mbs", [](Config & c) -> auto& { return c.links.nic_mbs; }, kRate,
          "MB/s of this rank's NICs, each way; 0: unknown."),
      key(
          "links", "nvlink_mbs", [](Config & c) -> auto& { return c.links.nvlink_mbs; }, kRate,
          "MB/s from this rank to the others of its node; 0: there is no such link."),
  };
}

std::vector<Key> time_keys() {
  return {
      key(
          "times", "join_ms", [](Config & c) -> auto& { return c.times.join_ms; }, kWait,
          "Until every rank has joined and is connected."),
      key(
          "times", "update_ms", [](Config & c) -> auto& { return c.times.update_ms; }, kWait,
          "One update, from push to ready."),
      key(
          "times", "commit_ms", [](Config & c) -> auto& { return c.times.commit_ms; }, kWait,
          "Until the host of a ready server commits."),
      key(
          "times", "heartbeat_busy_ms", [](Config & c) -> auto& { return c.times.heartbeat_busy_ms; }, kWait,
          "Between heartbeats during an update; less than lease_ms."),
      key(
          "times", "heartbeat_idle_ms", [](Config & c) -> auto& { return c.times.heartbeat_idle_ms; }, kWait,
          "Between heartbeats outside updates; less than death_idle_ms."),
      key(
          "times", "death_busy_ms", [](Config & c) -> auto& { return c.times.death_busy_ms; }, kWait,
          "Silence during an update after which a rank is dead."),
      key(
          "times", "death_idle_ms", [](Config & c) -> auto& { return c.times.death_idle_ms; }, kWait,
          "Silence outside updates after which a rank is dead."),
      key(
          "times", "lease_ms", [](Config & c) -> auto& { return c.times.lease_ms; }, kWait,
          "A sender puts only this long after a heartbeat; less than death_busy_ms."),
  };
}

std::vector<Key> performance_keys() {
  return {
      key(
          "performance", "chunk_bytes", [](Config & c) -> auto& { return c.performance.chunk_bytes; },
          Within{4 * KiB, 1 * GiB, 8}, "Largest single put; at most half of scratch_bytes."),
      key(
          "performance", "scratch_bytes", [](Config & c) -> auto& { return c.performance.scratch_bytes; },
          Within{8 * KiB, 64 * GiB}, "A sender's memory for cast chunks."),
      key(
          "performance", "window", [](Config & c) -> auto& { return c.performance.window; }, Within{1, 1024},
          "Puts in flight to each peer, at most: fewer while a link takes more than 25 ms over one."),
      key(
          "performance", "threads", [](Config & c) -> auto& { return c.performance.threads; }, Within{0, 1024},
          "Threads that cast in a trainer, verify and commit in a server; 0: a quarter of the cores, to commit all, at "
          "most 4."),
      key(
          "performance", "spin", [](Config & c) -> auto& { return c.performance.spin; },
          OneOf{{"auto", "always", "never"}}, "Busy-poll during an update; auto: where cores are free."),
      key(
          "performance", "relay", [](Config & c) -> auto& { return c.performance.relay; }, Any{},
          "Servers pass on to others where that is faster; needs links.nic_mbs of every rank. The controller's "
          "counts."),
  };
}

const std::vector<Key>& keys() {
  static const std::vector<Key> all = [] {
    std::vector<Key> list;
    for (auto part : {top_level_keys, controller_keys, fabric_keys, link_keys, time_keys, performance_keys}) {
      for (auto& entry : part()) list.push_back(std::move(entry));
    }
    return list;
  }();
  return all;
}

// ---- reading ----

[[noreturn]] void refuse_at(const std::string& origin, std::string_view pointer, std::string_view why) {
  throw Error(Code::invalid_argument, fmt::format("{}: {}: {}", origin, pointer, why));
}

// Reads one value by its key's rule; every complaint is worded here.
struct ValueReader {
  const std::string& origin;
  const Key& key;
  const Json& value;

  [[noreturn]] void must_be(std::string_view what) const {
    refuse_at(origin, key.pointer(),
              fmt::format("must be {}, not {}", what, value.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }

  void operator()(bool& field) const {
    if (!value.is_boolean()) must_be("true or false");
    field = value.get<bool>();
  }
  void operator()(uint32_t& field) const { field = static_cast<uint32_t>(number()); }
  void operator()(uint64_t& field) const { field = number(); }
  void operator()(std::string& field) const {
    if (!value.is_string()) must_be("a text");
    field = checked(value.get<std::string>());
  }
  void operator()(Strings& field) const {
    if (!value.is_array()) must_be("a list of texts");
    field.clear();
    for (const auto& item : value) {
      if (!item.is_string()) must_be("a list of texts");
      field.push_back(checked(item.get<std::string>()));
    }
  }

  [[nodiscard]] uint64_t number() const {
    const auto& range = std::get<Within>(key.rule);
    const bool ok = value.is_number_unsigned() && value.get<uint64_t>() >= range.least &&
                    value.get<uint64_t>() <= range.most && value.get<uint64_t>() % range.multiple_of == 0;
    if (!ok) {
      must_be(fmt::format("a whole number from {} to {}{}", range.least, range.most,
                          range.multiple_of > 1 ? fmt::format(", a multiple of {}", range.multiple_of) : ""));
    }
    return value.get<uint64_t>();
  }

  [[nodiscard]] std::string checked(std::string text) const {
    if (const auto* choice = std::get_if<OneOf>(&key.rule)) {
      const auto& values = choice->values;
      if (std::find(values.begin(), values.end(), text) == values.end()) {
        must_be(fmt::format("one of \"{}\"", fmt::join(values, "\", \"")));
      }
    }
    if (const auto* form = std::get_if<Pattern>(&key.rule)) {
      // The length bound keeps std::regex, which recurses, off inputs that could exhaust the stack.
      if (text.size() > 4096 || !std::regex_search(text, std::regex(form->pattern))) must_be(form->words);
    }
    return text;
  }
};

[[noreturn]] void refuse_unknown(const std::string& origin, std::string_view section, const std::string& name) {
  std::vector<std::string> pointers;
  for (const auto& known : keys()) pointers.push_back(known.pointer());
  for (const auto& [known, text] : kSections) pointers.push_back(fmt::format("/{}", known));
  Json::json_pointer pointer;
  if (!section.empty()) pointer /= std::string(section);
  pointer /= name;
  // A right name in a wrong section is nearer than any misspelling.
  std::string closest;
  for (const auto& known : keys()) {
    if (known.name == name) closest = known.pointer();
  }
  if (closest.empty()) closest = nearest(pointer.to_string(), {pointers.begin(), pointers.end()});
  refuse_at(origin, pointer.to_string(), fmt::format("unknown key; the nearest known one is {}", closest));
}

void read_section(Config& config, const Json& object, std::string_view section, const std::string& origin) {
  for (const auto& item : object.items()) {
    const std::string& name = item.key();
    const Json& value = item.value();
    const auto known = std::find_if(keys().begin(), keys().end(),
                                    [&](const Key& k) { return k.section == section && k.name == name; });
    const bool is_section = section.empty() && std::any_of(kSections.begin(), kSections.end(),
                                                           [&](const auto& pair) { return pair.first == name; });
    if (is_section) {
      if (!value.is_object()) refuse_at(origin, "/" + name, "must be an object");
      read_section(config, value, name, origin);
    } else if (known == keys().end()) {
      refuse_unknown(origin, section, name);
    } else {
      std::visit([&](auto field) { ValueReader{origin, *known, value}(field(config)); }, known->field);
    }
  }
}

// ---- contradictions: what no single key can show ----

void require_less(const std::string& origin, std::pair<const char*, uint64_t> less,
                  std::pair<const char*, uint64_t> more) {
  if (less.second < more.second) return;
  refuse_at(origin, less.first, fmt::format("{} must be less than {} ({})", less.second, more.first, more.second));
}

void check_contradictions(const Config& config, const std::string& origin) {
  const auto& times = config.times;
  require_less(origin, {"/times/lease_ms", times.lease_ms}, {"/times/death_busy_ms", times.death_busy_ms});
  require_less(origin, {"/times/heartbeat_busy_ms", times.heartbeat_busy_ms}, {"/times/lease_ms", times.lease_ms});
  require_less(origin, {"/times/heartbeat_idle_ms", times.heartbeat_idle_ms},
               {"/times/death_idle_ms", times.death_idle_ms});
  // Who was idle when an update begins was last heard one idle heartbeat ago.
  require_less(origin, {"/times/heartbeat_idle_ms", times.heartbeat_idle_ms},
               {"/times/death_busy_ms", times.death_busy_ms});

  const auto& controller = config.controller;
  const uint64_t servers = uint64_t{controller.replicas} * controller.servers_per_replica;
  require_less(origin, {"/replica", config.replica}, {"/controller/replicas", controller.replicas});
  if (config.rank >= std::max<uint64_t>(controller.trainers, servers)) {
    refuse_at(origin, "/rank",
              fmt::format("{} is the rank of nobody: there are {} trainers (/controller/trainers) and {} servers "
                          "(/controller/replicas x /controller/servers_per_replica)",
                          config.rank, controller.trainers, servers));
  }
  const auto port = std::stoul(controller.address.substr(controller.address.rfind(':') + 1));
  if (port > 65535) refuse_at(origin, "/controller/address", fmt::format("port {} is more than 65535", port));
  if (config.fabric.interfaces.empty())
    refuse_at(origin, "/fabric/interfaces", "must name an interface; \"lo\" is this host alone");
  const auto& performance = config.performance;
  if (performance.chunk_bytes > performance.scratch_bytes / 2) {
    refuse_at(origin, "/performance/chunk_bytes",
              fmt::format(
                  "{} must be at most half of /performance/scratch_bytes ({}): one chunk is cast while another is put",
                  performance.chunk_bytes, performance.scratch_bytes));
  }
}

// ---- the schema ----

Json schema_type(const bool&) { return {{"type", "boolean"}}; }
Json schema_type(const uint32_t&) { return {{"type", "integer"}}; }
Json schema_type(const uint64_t&) { return {{"type", "integer"}}; }
Json schema_type(const std::string&) { return {{"type", "string"}}; }
Json schema_type(const Strings&) { return {{"type", "array"}, {"items", {{"type", "string"}}}}; }

Json schema_of(const Key& key) {
  Config defaults;
  Json schema = {{"description", key.text}};
  std::visit(
      [&](auto field) {
        schema.update(schema_type(field(defaults)));
        schema["default"] = field(defaults);
      },
      key.field);
  if (const auto* range = std::get_if<Within>(&key.rule)) {
    schema["minimum"] = range->least;
    schema["maximum"] = range->most;
    if (range->multiple_of > 1) schema["multipleOf"] = range->multiple_of;
  } else if (const auto* choice = std::get_if<OneOf>(&key.rule)) {
    schema["enum"] = choice->values;
  } else if (const auto* form = std::get_if<Pattern>(&key.rule)) {
    (schema.contains("items") ? schema["items"] : schema)["pattern"] = form->pattern;
  }
  return schema;
}

}  // namespace

Config parse_config(std::string_view json_text, const std::string& origin) {
  const auto document = parse_strict_json(json_text, origin);
  if (!document.is_object()) throw Error(Code::invalid_argument, fmt::format("{}: must be a JSON object", origin));
  Config config;
  read_section(config, document, "", origin);
  check_contradictions(config, origin);
  return config;
}

Config load_config(const std::string& path) { return parse_config(read_text_file(path), path); }

std::string to_json(const Config& config) {
  Config values = config;
  Json document = Json::object();
  for (const auto& key : keys()) {
    auto& object = key.section.empty() ? document : document[std::string(key.section)];
    std::visit([&](auto field) { object[std::string(key.name)] = field(values); }, key.field);
  }
  return document.dump(2);
}

std::string config_schema() {
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "weightcast configuration"},
                 {"type", "object"},
                 {"additionalProperties", false},
                 {"properties", Json::object()}};
  auto& properties = schema["properties"];
  for (const auto& key : keys()) {
    if (key.section.empty()) {
      properties[std::string(key.name)] = schema_of(key);
      continue;
    }
    auto& section = properties[std::string(key.section)];
    if (section.is_null()) {
      const auto text =
          std::find_if(kSections.begin(), kSections.end(), [&](auto& s) { return s.first == key.section; });
      section = {{"description", text->second},
                 {"type", "object"},
                 {"additionalProperties", false},
                 {"properties", Json::object()}};
    }
    section["properties"][std::string(key.name)] = schema_of(key);
  }
  return schema.dump(2) + "\n";
}

}  // namespace weightcast

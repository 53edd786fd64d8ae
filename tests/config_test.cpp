#include "schedule/config.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "transport/base/status.h"

using namespace weightcast;

namespace {

// The complaint about a configuration; empty when there is none.
std::string complaint(std::string_view text) {
  try {
    static_cast<void>(parse_config(text, "cluster.json"));
  } catch (const Error& error) {
    CHECK(error.code() == Code::invalid_argument);
    return error.what();
  }
  return "";
}

std::string read_source(const char* path) {
  const char* root = std::getenv("WEIGHTCAST_SOURCE_ROOT");
  REQUIRE_MESSAGE(root != nullptr, "run by meson test, which sets WEIGHTCAST_SOURCE_ROOT");
  std::ifstream file(std::string(root) + "/" + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("an empty document gives the defaults, and the printed configuration reads back as itself") {
  const auto printed = to_json(parse_config("{}", "argument"));
  CHECK(printed == to_json(Config{}));
  CHECK(to_json(parse_config(printed, "argument")) == printed);
}

TEST_CASE("every kind of value is read from its key") {
  const auto config = parse_config(R"({"run": "rl-7", "landing": "in_place", "unused_tensors": ["*.inv_freq", "x"],
    "controller": {"address": "tcp://[::1]:99", "embedded": false, "trainers": 4, "replicas": 2},
    "performance": {"chunk_bytes": 65536}, "times": {"lease_ms": 1999}})",
                                   "argument");
  CHECK(config.run == "rl-7");
  CHECK(config.landing == "in_place");
  CHECK(config.unused_tensors == std::vector<std::string>{"*.inv_freq", "x"});
  CHECK(config.controller.address == "tcp://[::1]:99");
  CHECK_FALSE(config.controller.embedded);
  CHECK(config.controller.trainers == 4);
  CHECK(config.controller.servers_per_replica == 1);
  CHECK(config.performance.chunk_bytes == 65536);
  CHECK(config.times.lease_ms == 1999);
}

TEST_CASE("an unknown key is refused with file, pointer and the nearest known key") {
  CHECK(complaint(R"({"controler": {}})") ==
        "cluster.json: /controler: unknown key; the nearest known one is /controller");
  CHECK(complaint(R"({"times": {"lease": 3}})") ==
        "cluster.json: /times/lease: unknown key; the nearest known one is /times/lease_ms");
  CHECK(complaint(R"({"chunk_bytes": 8})") ==
        "cluster.json: /chunk_bytes: unknown key; the nearest known one is /performance/chunk_bytes");
  CHECK(complaint(R"({"a/b~": 1})").find("cluster.json: /a~1b~0: unknown key") == 0);
}

TEST_CASE("a wrong type is refused with what it must be") {
  CHECK(complaint(R"({"run": 3})") == "cluster.json: /run: must be a text, not 3");
  CHECK(complaint(R"({"times": 3})") == "cluster.json: /times: must be an object");
  CHECK(complaint(R"({"controller": {"embedded": "yes"}})") ==
        "cluster.json: /controller/embedded: must be true or false, not \"yes\"");
  CHECK(complaint(R"({"fabric": {"interfaces": "lo"}})") ==
        "cluster.json: /fabric/interfaces: must be a list of texts, not \"lo\"");
  CHECK(complaint(R"({"unused_tensors": [1]})") == "cluster.json: /unused_tensors: must be a list of texts, not [1]");
  CHECK(complaint("[]") == "cluster.json: must be a JSON object");
}

TEST_CASE("numbers out of range, broken or negative are refused") {
  for (const auto* value : {"0", "-1", "1.5", "1e3", "86400001", "99999999999999999999", "true", "null", "\"5\""}) {
    CAPTURE(value);
    CHECK(complaint(std::string(R"({"times": {"join_ms": )") + value + "}}")
              .find("cluster.json: /times/join_ms: must be a whole number from 1 to 86400000, not ") == 0);
  }
  CHECK(complaint(R"({"performance": {"chunk_bytes": 65537}})").find("a multiple of 8, not 65537") !=
        std::string::npos);
}

TEST_CASE("choices and forms are held to") {
  CHECK(complaint(R"({"landing": "shadow"})") ==
        "cluster.json: /landing: must be one of \"staged\", \"in_place\", not \"shadow\"");
  CHECK(complaint(R"({"log_level": "verbose"})").find("/log_level: must be one of \"error\"") != std::string::npos);
  CHECK(complaint(R"({"performance": {"spin": true}})").find("/performance/spin: must be a text") != std::string::npos);
  CHECK(complaint(R"({"performance": {"spin": "maybe"}})").find("/performance/spin: must be one of") !=
        std::string::npos);
  CHECK(complaint(R"({"run": ""})").find("/run: must be 1 to 64") != std::string::npos);
  CHECK(complaint(R"({"secret_file": ""})").find("/secret_file: must be a text that is not empty") !=
        std::string::npos);
  for (const auto* address : {"127.0.0.1:5710", "tcp://:5710", "tcp://host", "tcp://host:0", "tcp://host:123456",
                              "tcp://host:70000", "tcp://host:57 10", "tcp://ho st:1", "ipc://x:1", "tcp://::1:5"}) {
    CAPTURE(address);
    CHECK(complaint(std::string(R"({"controller": {"address": ")") + address + "\"}}")
              .find("cluster.json: /controller/address: ") == 0);
  }
}

TEST_CASE("settings that contradict each other are refused, and both are named") {
  CHECK(complaint(R"({"times": {"lease_ms": 2000}})") ==
        "cluster.json: /times/lease_ms: 2000 must be less than /times/death_busy_ms (2000)");
  CHECK(complaint(R"({"times": {"heartbeat_busy_ms": 1600}})").find("must be less than /times/lease_ms (1500)") !=
        std::string::npos);
  CHECK(complaint(R"({"times": {"heartbeat_idle_ms": 9000}})").find("must be less than /times/death_idle_ms (5000)") !=
        std::string::npos);
  CHECK(complaint(R"({"times": {"heartbeat_idle_ms": 2000}})").find("must be less than /times/death_busy_ms (2000)") !=
        std::string::npos);
  CHECK(
      complaint(R"({"performance": {"scratch_bytes": 8388600}})").find("at most half of /performance/scratch_bytes") !=
      std::string::npos);
  CHECK(complaint(R"({"replica": 2, "controller": {"replicas": 2}})") ==
        "cluster.json: /replica: 2 must be less than /controller/replicas (2)");
  CHECK(complaint(R"({"rank": 4, "controller": {"trainers": 4, "replicas": 2}})")
            .find("/rank: 4 is the rank of nobody") != std::string::npos);
  CHECK(complaint(R"({"rank": 5, "controller": {"trainers": 4, "replicas": 3, "servers_per_replica": 2}})").empty());
  CHECK(complaint(R"({"fabric": {"interfaces": []}})").find("/fabric/interfaces: must name an interface") !=
        std::string::npos);
}

TEST_CASE("a key that stands twice is refused instead of one of them winning") {
  CHECK(complaint(R"({"run": "a", "run": "b"})") == "cluster.json: /run: this key stands twice");
  CHECK(complaint(R"({"times": {"lease_ms": 1}, "fabric": {}, "times": {}})") ==
        "cluster.json: /times: this key stands twice");
  CHECK(complaint(R"({"times": {"lease_ms": 1, "lease_ms": 1}})") ==
        "cluster.json: /times/lease_ms: this key stands twice");
}

TEST_CASE("text that is no JSON is refused with its place") {
  CHECK(complaint("{\"run\": \"a\",\n  oops}").find("cluster.json: parse error at line 2, column 3") == 0);
  CHECK(complaint("").find("cluster.json: parse error") == 0);
  CHECK(complaint("{} {}").find("cluster.json: parse error") == 0);
  CHECK(complaint("{\"run\": \"\xff\"}").find("cluster.json: parse error") == 0);
}

TEST_CASE("a file that cannot be read says which and why") {
  for (const auto& [path, why] : {std::pair{"/nonexistent/weightcast.json", "No such file"}, {"/", "directory"}}) {
    try {
      static_cast<void>(load_config(path));
      FAIL("was read");
    } catch (const Error& error) {
      CHECK(error.code() == Code::unavailable);
      CHECK(std::string(error.what()).find(std::string("cannot read ") + path) == 0);
      CHECK(std::string(error.what()).find(why) != std::string::npos);
    }
  }
}

TEST_CASE("the shipped schema is the one that the table of keys gives") {
  CHECK(read_source("schedule/config.schema.json") == config_schema());
}

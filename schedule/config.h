// The configuration of every role: one JSON document, one table of keys (config.cpp) from which parser, defaults,
// `weightcast config --print` and the shipped schema are all made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weightcast {

struct Config {
  // ---- behaviour ----
  std::string run = "default";  // trainers and servers of another run are refused
  std::uint32_t rank = 0;       // of this process among its role; --rank and the C ABI's caller set it
  std::uint32_t replica = 0;    // a server's
  struct Controller {
    std::string address = "tcp://127.0.0.1:5710";
    bool embedded = true;  // trainer rank 0 runs it
    std::uint32_t trainers = 1;
    std::uint32_t replicas = 1;
    std::uint32_t servers_per_replica = 1;
  } controller;
  std::string secret_file = "weightcast.secret";
  std::string landing = "staged";  // or "in_place"
  std::vector<std::string> unused_tensors;
  struct Fabric {
    std::string ucx_library;                       // empty: found
    std::vector<std::string> interfaces = {"lo"};  // UCX listens on these only
    bool allow_emulation = false;
    bool same_host_shortcuts = true;
  } fabric;
  struct Links {
    std::string node;              // ranks that name the same one share a host; empty: the host that runs this process
    std::uint32_t nic_mbs = 0;     // MB/s of this rank's NICs, each way; 0: unknown
    std::uint32_t nvlink_mbs = 0;  // MB/s to the other ranks of its node; 0: there is no such link
  } links;
  struct Times {
    std::uint32_t join_ms = 60000;          // until every rank has joined and is connected
    std::uint32_t update_ms = 60000;        // one update, push to ready
    std::uint32_t commit_ms = 60000;        // until the host of a ready server commits
    std::uint32_t heartbeat_busy_ms = 250;  // during an update
    std::uint32_t heartbeat_idle_ms = 1000;
    std::uint32_t death_busy_ms = 2000;  // silence after which a rank is dead
    std::uint32_t death_idle_ms = 5000;
    std::uint32_t lease_ms = 1500;  // a sender puts only this long after a heartbeat; below death_busy_ms
  } times;
  std::string log_level = "info";
  // ---- performance ----
  struct Performance {
    std::uint64_t chunk_bytes = 4ULL << 20;
    std::uint64_t scratch_bytes = 32ULL << 20;  // of a sender, for cast chunks
    std::uint32_t window = 8;                   // puts in flight per peer; fewer while a link takes long over one
    std::uint32_t threads = 0;                  // of each rank; 0: a quarter of the cores, to commit all, at most 4
    std::string spin = "auto";                  // "auto", "always", "never": busy-poll during an update
    bool relay = true;  // the controller's: servers pass on to others where all ranks say how fast links are
  } performance;
};

// Throws Error{invalid_argument}: unknown keys (naming the nearest known one), wrong types, values out of range,
// contradictions; each with `origin` (a file name or "argument") and the JSON pointer.
[[nodiscard]] Config parse_config(std::string_view json_text, const std::string& origin);
[[nodiscard]] Config load_config(const std::string& path);
// The effective configuration, every key, two-space indented.
[[nodiscard]] std::string to_json(const Config& config);
// JSON Schema (draft 2020-12) of the configuration; shipped as schedule/config.schema.json.
[[nodiscard]] std::string config_schema();

}  // namespace weightcast

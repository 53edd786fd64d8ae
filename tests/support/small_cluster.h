// The smallest cluster for tests of the protocol: one tensor, each trainer holds an equal part, each server all of it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "plugin/messages.h"
#include "schedule/config.h"
#include "schedule/plan.h"

namespace weightcast {

inline constexpr std::int64_t kElementsOfPart = 4;
inline constexpr std::uint64_t kPartBytes = 8;

inline Config small_config(std::uint32_t trainers, std::uint32_t replicas, std::uint32_t servers_per_replica) {
  Config config;
  config.run = "test";
  config.controller.trainers = trainers;
  config.controller.replicas = replicas;
  config.controller.servers_per_replica = servers_per_replica;
  return config;
}

inline Box small_part(std::int64_t first, std::int64_t count) {
  Box box;
  box.axes = 1;
  box.offset[0] = first;
  box.extent[0] = count;
  return box;
}

inline Catalog small_catalog(const Config& config, Role role, std::uint32_t rank) {
  const std::int64_t all = kElementsOfPart * config.controller.trainers;
  Catalog catalog;
  catalog.role = role;
  catalog.rank = rank;
  Entry entry;
  entry.tensor = "weight";
  entry.shape = {all};
  entry.strides_bytes[0] = 2;
  if (role == Role::trainer) {
    entry.box = small_part(kElementsOfPart * rank, kElementsOfPart);
  } else {
    entry.box = small_part(0, all);
    catalog.replica = rank / config.controller.servers_per_replica;
  }
  catalog.regions.push_back({"weights", static_cast<std::uint64_t>(entry.box.extent[0]) * 2, MemoryKind::host, 0});
  catalog.entries.push_back(std::move(entry));
  return catalog;
}

inline Join small_join(const Config& config, Role role, std::uint32_t rank, std::uint64_t incarnation) {
  const Catalog catalog = small_catalog(config, role, rank);
  Join join;
  join.run = config.run;
  join.role = role;
  join.rank = rank;
  join.incarnation = incarnation;
  join.catalog = to_json(catalog);
  join.catalog_digest = digest_of(catalog);
  if (role == Role::server) join.landing = config.landing;
  return join;
}

// Every trainer sends its part to this server.
inline std::vector<std::uint8_t> small_server_table(const Config& config, std::uint32_t server) {
  ServerTable table;
  table.server = server;
  for (std::uint32_t trainer = 0; trainer < config.controller.trainers; ++trainer) {
    const Piece part{0, small_part(kElementsOfPart * trainer, kElementsOfPart)};
    table.senders.push_back({Role::trainer, trainer, kPartBytes, {part}, {{1, kPartBytes}}, {}});
  }
  return encode(table);
}

}  // namespace weightcast

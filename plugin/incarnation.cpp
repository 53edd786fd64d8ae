#include "plugin/incarnation.h"

#include <fmt/format.h>

#include <fstream>
#include <random>
#include <string>

namespace weightcast {

namespace {

// The same in all containers of a host, and nowhere else.
std::string this_host() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

}  // namespace

std::uint64_t new_incarnation() {
  std::random_device random;
  std::uint64_t value = 0;
  while (value == 0) value = (std::uint64_t{random()} << 32) | random();
  return value;
}

Catalog own_catalog(const Config& config, Role role, std::string_view json) {
  Catalog catalog = parse_catalog(json, fmt::format("catalog of {} {}", to_string(role), config.rank));
  if (catalog.role == role && catalog.rank == config.rank &&
      (role == Role::trainer || catalog.replica == config.replica)) {
    return catalog;
  }
  throw Error(Code::invalid_argument,
              fmt::format("the catalog is that of {}, the configuration that of {} {} (replica {}): set \"rank\", and "
                          "\"replica\" for a server, alike in both",
                          name_of(catalog), to_string(role), config.rank, config.replica));
}

Join make_join(const Config& config, const Catalog& catalog, const std::string& landing) {
  Catalog shared = catalog;
  for (Region& region : shared.regions) region.address = 0;
  Join join;
  join.run = config.run;
  join.role = catalog.role;
  join.rank = catalog.rank;
  join.incarnation = new_incarnation();
  join.catalog = to_json(shared);
  join.catalog_digest = digest_of(shared);
  join.landing = landing;
  join.node = config.links.node.empty() ? this_host() : config.links.node;
  join.nic_mbs = config.links.nic_mbs;
  join.nvlink_mbs = config.links.nvlink_mbs;
  return join;
}

}  // namespace weightcast

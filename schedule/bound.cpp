#include "schedule/bound.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "schedule/blocks.h"
#include "schedule/match.h"
#include "schedule/share.h"

namespace weightcast {
namespace {

constexpr double kGiga = 1e9;

std::uint64_t volume(const Box& box) { return static_cast<std::uint64_t>(elements(box)); }

// Elements in any of the boxes: inclusion by cells between the places where boxes begin and end, axis by axis.
std::uint64_t union_volume(const std::vector<Box>& boxes, std::size_t axis = 0) {
  if (boxes.empty()) return 0;
  if (boxes.size() == 1 && axis == 0) return volume(boxes.front());
  if (axis == boxes.front().axes) return 1;
  std::vector<std::int64_t> places;
  for (const auto& box : boxes) {
    places.push_back(box.offset[axis]);
    places.push_back(box.offset[axis] + box.extent[axis]);
  }
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i + 1 < places.size(); ++i) {
    std::vector<Box> across;
    for (const auto& box : boxes) {
      if (box.offset[axis] <= places[i] && places[i] < box.offset[axis] + box.extent[axis]) across.push_back(box);
    }
    sum += static_cast<std::uint64_t>(places[i + 1] - places[i]) * union_volume(across, axis + 1);
  }
  return sum;
}

std::uint64_t bytes_of_values(std::uint64_t values, Recipe recipe) {
  return values / static_cast<std::uint64_t>(values_of_element(recipe)) * element_bytes(recipe);
}

// Whose scales go with values of a recipe.
std::vector<Recipe> scales_of(Recipe recipe) {
  if (!has_scales(recipe)) return {};
  if (!has_tensor_scale(recipe)) return {recipe};
  return {recipe, Recipe::nvfp4_tensor_scale};
}

// Distinct bytes that these frames of a family want, scales included.
std::uint64_t distinct_bytes(const Family& family, const std::vector<std::size_t>& frames) {
  std::map<Recipe, std::vector<Box>> boxes;
  for (const auto frame : frames) boxes[family.frames[frame].recipe].push_back(family.frames[frame].box);
  std::uint64_t bytes = 0;
  for (const auto& [recipe, wanted] : boxes) {
    bytes += bytes_of_values(union_volume(wanted), recipe);
    for (const auto scales : scales_of(recipe)) {
      std::vector<Box> blocks;
      blocks.reserve(wanted.size());
      for (const auto& box : wanted) blocks.push_back(blocks_touched(box, scales));
      bytes += union_volume(blocks) * scale_bytes(scales);
    }
  }
  return bytes * family.count;
}

std::uint64_t bytes_of(const Frame& frame) {
  auto bytes = bytes_of_values(volume(frame.box), frame.recipe);
  for (const auto scales : scales_of(frame.recipe)) {
    bytes += volume(blocks_touched(frame.box, scales)) * scale_bytes(scales);
  }
  return bytes;
}

// Decimal units, four digits: "268.2 GB".
std::string four_digits(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= kGiga) return fmt::format("{:.4g} GB", value / kGiga);
  if (value >= 1e6) return fmt::format("{:.4g} MB", value / 1e6);
  return fmt::format("{:.4g} kB", value / 1e3);
}

class Bounding {
 public:
  Bounding(const Catalogs& catalogs, const Topology& topology, bool relay, const std::vector<std::string>& unused)
      : topology_(topology),
        relay_(relay),
        matches_(match(catalogs, unused)),
        trainers_(catalogs.trainers.size()),
        into_(catalogs.servers.size()) {}

  Bound run() {
    count_servers();
    const bool rates_known = topology_.servers.size() == into_.size();
    for (std::size_t server = 0; rates_known && server < into_.size(); ++server) {
      const auto& links = topology_.servers[server];
      const bool through_node = relay_ && links.nvlink_gbs > 0;
      consider(into_[server], through_node ? links.nic_gbs + links.nvlink_gbs : links.nic_gbs,
               [&] { return fmt::format("server {} in", server); });
    }
    if (relay_ && rates_known) consider_nodes();
    consider_trainers();
    std::uint64_t total = 0;
    for (const auto bytes : into_) total += bytes;
    consider(total, topology_.host_gbs, [] { return std::string("host"); });
    return bound_;
  }

 private:
  template <class Name>
  void consider(std::uint64_t bytes, double gbs, const Name& name, const char* note = "") {
    if (gbs > 0) consider_seconds(static_cast<double>(bytes) / (gbs * kGiga), bytes, name, note);
  }
  template <class Name>
  void consider_seconds(double seconds, std::uint64_t bytes, const Name& name, const char* note = "") {
    if (seconds <= bound_.seconds * (1 + 1e-9)) return;
    bound_ = {seconds, fmt::format("{}, {}{}", name(), four_digits(bytes), note)};
  }

  void count_servers() {
    for (const auto& family : matches_.families) {
      for (const auto& frame : family.frames) {
        const auto bytes = bytes_of(frame) * family.count;
        for (const auto& taker : frame.takers) into_[taker.server] += bytes;
      }
    }
  }

  void consider_nodes() {
    struct Node {
      std::uint64_t bytes = 0;
      double gbs = 0;
      std::uint32_t first = 0;
      std::uint32_t last = 0;
      bool has_nvlink = true;
    };
    std::map<std::uint32_t, Node> nodes;
    for (std::uint32_t server = 0; server < topology_.servers.size(); ++server) {
      const auto& links = topology_.servers[server];
      const auto [found, is_new] = nodes.try_emplace(links.node);
      auto& node = found->second;
      if (is_new) node.first = server;
      node.last = server;
      node.gbs = links.nic_gbs > 0 && (is_new || node.gbs > 0) ? node.gbs + links.nic_gbs : 0;
      node.has_nvlink = node.has_nvlink && links.nvlink_gbs > 0;
    }
    for (const auto& family : matches_.families) {
      std::map<std::uint32_t, std::vector<std::size_t>> wanted;  // frames by node
      for (std::size_t frame = 0; frame < family.frames.size(); ++frame) {
        for (const auto& taker : family.frames[frame].takers) {
          auto& frames = wanted[topology_.servers[taker.server].node];
          if (frames.empty() || frames.back() != frame) frames.push_back(frame);
        }
      }
      std::map<std::vector<std::size_t>, std::uint64_t> known;
      for (const auto& [node, frames] : wanted) {
        const auto [found, is_new] = known.try_emplace(frames);
        if (is_new) found->second = distinct_bytes(family, frames);
        nodes[node].bytes += found->second;
      }
    }
    for (const auto& [number, node] : nodes) {
      consider(
          node.bytes, node.gbs,
          [&node = node] {
            return node.first == node.last ? fmt::format("server NIC {}", node.first)
                                           : fmt::format("NICs of servers {}-{}", node.first, node.last);
          },
          node.has_nvlink && node.first != node.last ? ", replicated tensors relayed" : "");
    }
  }

  // Scales are left out: who owns those of straddling blocks is the planner's choice.
  void consider_trainers() {
    if (topology_.trainers.size() != trainers_) return;
    std::vector<double> rates;
    for (const auto& links : topology_.trainers) {
      if (links.nic_gbs <= 0) return;
      rates.push_back(links.nic_gbs);
    }
    std::map<std::vector<std::uint32_t>, std::uint64_t> bytes_of_holders;
    for (const auto& family : matches_.families) {
      std::vector<std::map<Recipe, std::vector<Box>>> distinct(family.shards.size());
      std::vector<std::uint64_t> bytes(family.shards.size());
      for (const auto& part : family.parts) {
        const auto& frame = family.frames[part.frame];
        if (relay_) {
          distinct[part.shard][frame.recipe].push_back(part.box);
        } else {
          bytes[part.shard] += bytes_of_values(volume(part.box), frame.recipe) * frame.takers.size();
        }
      }
      for (std::size_t shard = 0; shard < family.shards.size(); ++shard) {
        for (const auto& [recipe, boxes] : distinct[shard]) {
          bytes[shard] += bytes_of_values(union_volume(boxes), recipe);
        }
        std::vector<std::uint32_t> holders;
        for (const auto& holder : family.shards[shard].holders) {
          if (holders.empty() || holders.back() != holder.trainer) holders.push_back(holder.trainer);
        }
        bytes_of_holders[std::move(holders)] += bytes[shard] * family.count;
      }
    }
    std::vector<Load> loads;
    loads.reserve(bytes_of_holders.size());
    for (auto& [holders, bytes] : bytes_of_holders) loads.push_back({bytes, holders});
    const auto shares = share(loads, rates);
    std::vector<std::uint64_t> out(trainers_);
    for (std::size_t i = 0; i < loads.size(); ++i) {
      for (std::size_t j = 0; j < loads[i].carriers.size(); ++j) out[loads[i].carriers[j]] += shares.bytes[i][j];
    }
    std::size_t busiest = 0;
    const auto seconds_of = [&](std::size_t rank) { return static_cast<double>(out[rank]) / (rates[rank] * kGiga); };
    for (std::size_t rank = 1; rank < out.size(); ++rank) {
      if (seconds_of(rank) > seconds_of(busiest)) busiest = rank;
    }
    // Whole bytes may take one byte more than the optimum.
    consider_seconds(std::min(shares.seconds, seconds_of(busiest)), out[busiest],
                     [&] { return fmt::format("trainer {} out", busiest); });
  }

  const Topology& topology_;
  bool relay_;
  Matches matches_;
  std::size_t trainers_;
  std::vector<std::uint64_t> into_;  // by server
  Bound bound_;
};

}  // namespace

Bound lower_bound(const Catalogs& catalogs, const Topology& topology, bool relay,
                  const std::vector<std::string>& unused_tensors) {
  return Bounding(catalogs, topology, relay, unused_tensors).run();
}

double makespan_s(const Plan& plan, const Topology& topology) {
  double seconds = 0;
  const auto through = [&](std::uint64_t bytes, double gbs) {
    if (gbs > 0) seconds = std::max(seconds, static_cast<double>(bytes) / (gbs * kGiga));
  };
  for (std::size_t rank = 0; rank < std::min(plan.trainer_bytes.size(), topology.trainers.size()); ++rank) {
    through(plan.trainer_bytes[rank], topology.trainers[rank].nic_gbs);
  }
  std::uint64_t total = 0;
  for (const auto bytes : plan.server_bytes) total += bytes;
  through(total, topology.host_gbs);
  for (std::size_t rank = 0; rank < std::min(plan.server_loads.size(), topology.servers.size()); ++rank) {
    const auto& load = plan.server_loads[rank];
    const auto& links = topology.servers[rank];
    through(std::max(load.nic_in, load.nic_out), links.nic_gbs);
    through(std::max(load.nvlink_in, load.nvlink_out), links.nvlink_gbs);
  }
  return seconds;
}

}  // namespace weightcast

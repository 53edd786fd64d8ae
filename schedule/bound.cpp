#include "schedule/bound.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "schedule/blocks.h"
#include "schedule/share.h"
#include "schedule/units_text.h"

namespace weightcast {
namespace {

constexpr double kGiga = 1e9;

std::uint64_t volume(const Box& box) { return static_cast<std::uint64_t>(elements(box)); }

// Cuts the boxes between the places where one begins or ends, axis by axis, and calls visit(elements, which) for each
// cell that some of them have.
template <class Visit>
void for_each_cell(const std::vector<Box>& boxes, const std::vector<std::size_t>& which, const Visit& visit,
                   std::uint64_t across = 1, std::size_t axis = 0) {
  if (which.empty()) return;
  if (axis == boxes[which.front()].axes) return visit(across, which);
  const auto begin = [&](std::size_t i) { return boxes[i].offset[axis]; };
  const auto end = [&](std::size_t i) { return boxes[i].offset[axis] + boxes[i].extent[axis]; };
  std::vector<std::int64_t> places;
  places.reserve(2 * which.size());
  for (const auto i : which) places.insert(places.end(), {begin(i), end(i)});
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  for (std::size_t place = 0; place + 1 < places.size(); ++place) {
    std::vector<std::size_t> here;
    std::copy_if(which.begin(), which.end(), std::back_inserter(here),
                 [&](std::size_t i) { return begin(i) <= places[place] && places[place] < end(i); });
    for_each_cell(boxes, here, visit, across * static_cast<std::uint64_t>(places[place + 1] - places[place]), axis + 1);
  }
}

std::uint64_t union_volume(const std::vector<Box>& boxes) {
  std::vector<std::size_t> all(boxes.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  std::uint64_t sum = 0;
  for_each_cell(boxes, all, [&](std::uint64_t elements, const auto&) { sum += elements; });
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

// Bytes that the same frames of a family want, and no other of those asked for.
struct Cell {
  std::vector<std::size_t> frames;  // ascending
  std::uint64_t bytes = 0;
};

// What these frames want, scales included, every byte once.
std::vector<Cell> cells_of(const Family& family, const std::vector<std::size_t>& frames) {
  std::map<Recipe, std::vector<std::size_t>> by_recipe;
  for (const auto frame : frames) by_recipe[family.frames[frame].recipe].push_back(frame);
  std::map<std::vector<std::size_t>, std::uint64_t> bytes;
  for (const auto& of_recipe : by_recipe) {
    const auto recipe = of_recipe.first;
    const auto& members = of_recipe.second;
    std::vector<std::size_t> all(members.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    const auto add = [&](const std::vector<Box>& boxes, const auto& bytes_of_elements) {
      for_each_cell(boxes, all, [&](std::uint64_t elements, const std::vector<std::size_t>& which) {
        std::vector<std::size_t> takers;
        takers.reserve(which.size());
        for (const auto i : which) takers.push_back(members[i]);
        bytes[std::move(takers)] += bytes_of_elements(elements) * family.count;
      });
    };
    std::vector<Box> boxes;
    boxes.reserve(members.size());
    for (const auto frame : members) boxes.push_back(family.frames[frame].box);
    add(boxes, [&](std::uint64_t elements) { return bytes_of_values(elements, recipe); });
    for (const auto scales : scales_of(recipe)) {
      std::vector<Box> blocks;
      blocks.reserve(boxes.size());
      for (const auto& box : boxes) blocks.push_back(blocks_touched(box, scales));
      add(blocks, [&](std::uint64_t elements) { return elements * scale_bytes(scales); });
    }
  }
  std::vector<Cell> cells;
  cells.reserve(bytes.size());
  for (const auto& [of, sum] : bytes) cells.push_back({of, sum});
  return cells;
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

// The blocks of a tensor that lie in `box` as a whole. Nobody but who holds the box knows their scales.
std::optional<Box> blocks_within(const Box& box, const std::vector<std::int64_t>& shape, Recipe recipe) {
  Box blocks = box;
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto edge = block_edge(recipe, box.axes, axis);
    const auto end = box.offset[axis] + box.extent[axis];
    blocks.offset[axis] = (box.offset[axis] + edge - 1) / edge;
    blocks.extent[axis] = (end == shape[axis] ? (end + edge - 1) / edge : end / edge) - blocks.offset[axis];
    if (blocks.extent[axis] <= 0) return std::nullopt;
  }
  return blocks;
}

class Bounding {
 public:
  Bounding(const Matches& matches, const Topology& topology, bool relay)
      : topology_(topology), relay_(relay), matches_(matches), into_(matches.servers) {}

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

  // Whoever receives a byte for its node takes it too: a server has no place for what it does not serve. So the bytes
  // that only some of a node's servers take go through the NICs of these, which is a flow.
  void consider_nodes() {
    std::map<std::uint32_t, std::map<std::vector<std::uint32_t>, std::uint64_t>> bytes;  // by node and takers
    for (const auto& family : matches_.families) {
      std::map<std::uint32_t, std::vector<std::size_t>> wanted;  // frames by node
      for (std::size_t frame = 0; frame < family.frames.size(); ++frame) {
        for (const auto& taker : family.frames[frame].takers) {
          if (topology_.servers[taker.server].nvlink_gbs <= 0) continue;  // nobody passes on to it within the node
          auto& frames = wanted[topology_.servers[taker.server].node];
          if (frames.empty() || frames.back() != frame) frames.push_back(frame);
        }
      }
      std::map<std::vector<std::size_t>, std::vector<Cell>> known;
      for (const auto& [node, frames] : wanted) {
        const auto [found, is_new] = known.try_emplace(frames);
        if (is_new) found->second = cells_of(family, frames);
        for (const auto& cell : found->second) bytes[node][takers_of(family, cell, node)] += cell.bytes;
      }
    }
    for (const auto& [node, of_node] : bytes) consider_node(of_node);
  }

  [[nodiscard]] std::vector<std::uint32_t> takers_of(const Family& family, const Cell& cell, std::uint32_t node) const {
    std::vector<std::uint32_t> servers;
    for (const auto frame : cell.frames) {
      for (const auto& taker : family.frames[frame].takers) {
        const auto& links = topology_.servers[taker.server];
        if (links.node == node && links.nvlink_gbs > 0) servers.push_back(taker.server);
      }
    }
    std::sort(servers.begin(), servers.end());
    servers.erase(std::unique(servers.begin(), servers.end()), servers.end());
    return servers;
  }

  void consider_node(const std::map<std::vector<std::uint32_t>, std::uint64_t>& bytes_of_takers) {
    std::vector<double> rates;
    for (const auto& links : topology_.servers) rates.push_back(links.nic_gbs);
    std::vector<Load> loads;
    bool is_passed_on = false;
    loads.reserve(bytes_of_takers.size());
    for (const auto& [takers, bytes] : bytes_of_takers) {
      if (std::any_of(takers.begin(), takers.end(), [&](std::uint32_t server) { return rates[server] <= 0; })) return;
      loads.push_back({bytes, takers});
      is_passed_on = is_passed_on || takers.size() > 1;
    }
    consider_shared(
        loads, rates,
        [](const std::vector<std::uint32_t>& ranks) {
          return fmt::format("{} {}", ranks.size() == 1 ? "server NIC" : "NICs of servers", ranks_text(ranks));
        },
        is_passed_on ? ", replicated tensors relayed" : "");
  }

  // Scales of straddling blocks are left out: which of their holders sends them is the planner's choice.
  void consider_trainers() {
    if (topology_.trainers.size() != matches_.trainers) return;
    std::vector<double> rates;
    for (const auto& links : topology_.trainers) {
      if (links.nic_gbs <= 0) return;
      rates.push_back(links.nic_gbs);
    }
    std::map<std::vector<std::uint32_t>, std::uint64_t> bytes_of_holders;
    for (const auto& family : matches_.families) {
      const auto bytes = bytes_out_of(family);
      for (std::size_t shard = 0; shard < family.shards.size(); ++shard) {
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
    consider_shared(loads, rates, [](const std::vector<std::uint32_t>& ranks) {
      return fmt::format("{} {} out", ranks.size() == 1 ? "trainer" : "trainers", ranks_text(ranks));
    });
  }

  // What must leave each shard of a family: with relay once, else to every taker.
  [[nodiscard]] std::vector<std::uint64_t> bytes_out_of(const Family& family) const {
    struct Wanted {
      std::vector<Box> boxes;
      std::map<Recipe, std::vector<Box>> blocks;  // by recipe of the scales
    };
    std::vector<std::uint64_t> bytes(family.shards.size());
    std::vector<std::map<Recipe, Wanted>> distinct(family.shards.size());
    for (const auto& part : family.parts) {
      const auto& frame = family.frames[part.frame];
      auto once = bytes_of_values(volume(part.box), frame.recipe);
      auto& wanted = distinct[part.shard][frame.recipe];
      wanted.boxes.push_back(part.box);
      for (const auto scales : scales_of(frame.recipe)) {
        const auto blocks = blocks_within(part.box, family.shape, scales);
        if (!blocks) continue;
        once += volume(*blocks) * scale_bytes(scales);
        wanted.blocks[scales].push_back(*blocks);
      }
      if (!relay_) bytes[part.shard] += once * frame.takers.size();
    }
    for (std::size_t shard = 0; relay_ && shard < family.shards.size(); ++shard) {
      for (const auto& [recipe, wanted] : distinct[shard]) {
        bytes[shard] += bytes_of_values(union_volume(wanted.boxes), recipe);
        for (const auto& [scales, blocks] : wanted.blocks) bytes[shard] += union_volume(blocks) * scale_bytes(scales);
      }
    }
    return bytes;
  }

  // The optimum of sharing the loads out; set by those who are busy all the time, whom name(ranks) names.
  template <class Name>
  void consider_shared(const std::vector<Load>& loads, const std::vector<double>& rates, const Name& name,
                       const char* note = "") {
    const auto shares = share(loads, rates);
    std::map<std::uint32_t, std::uint64_t> out;
    for (std::size_t i = 0; i < loads.size(); ++i) {
      for (std::size_t j = 0; j < loads[i].carriers.size(); ++j) out[loads[i].carriers[j]] += shares.bytes[i][j];
    }
    double longest = 0;
    const auto seconds_of = [&](const auto& carried) {
      return static_cast<double>(carried.second) / (rates[carried.first] * kGiga);
    };
    for (const auto& carried : out) longest = std::max(longest, seconds_of(carried));
    std::vector<std::uint32_t> busiest;
    std::uint64_t bytes = 0;
    for (const auto& carried : out) {
      constexpr std::uint64_t kSlackBytes = 2;  // shares are of whole bytes
      if (seconds_of(std::pair(carried.first, carried.second + kSlackBytes)) < longest * (1 - 1e-6)) continue;
      busiest.push_back(carried.first);
      bytes += carried.second;
    }
    // Whole bytes may take one byte more than the optimum.
    consider_seconds(
        std::min(shares.seconds, longest), bytes, [&] { return name(busiest); }, busiest.size() > 1 ? note : "");
  }

  const Topology& topology_;
  bool relay_;
  const Matches& matches_;
  std::vector<std::uint64_t> into_;  // by server
  Bound bound_;
};

}  // namespace

Bound lower_bound(const Matches& matches, const Topology& topology, bool relay) {
  return Bounding(matches, topology, relay).run();
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

#include "schedule/share.h"

#include <lemon/preflow.h>
#include <lemon/smart_graph.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace weightcast {
namespace {

using Members = std::vector<std::size_t>;  // positions of loads, ascending

// Of bytes from a load to one of its carriers. Were it the load's own bytes, a least cut could run through there, and
// hold up loads whose carriers have time left.
constexpr std::int64_t kAnyNumber = std::int64_t{1} << 62;

class Sharing {
 public:
  Sharing(const std::vector<Load>& loads, const std::vector<double>& rates) : loads_(loads), rates_(rates) {
    shares_.bytes.resize(loads.size());
    for (std::size_t i = 0; i < loads.size(); ++i) shares_.bytes[i].resize(loads[i].carriers.size());
    taken_.resize(rates.size());
  }

  Shares run() {
    for (auto& component : components()) lower(std::move(component));
    return std::move(shares_);
  }

 private:
  struct Flow {
    bool is_enough = false;
    Members held_up;                                // loads that cannot be carried in time, when it is not enough
    std::vector<std::vector<std::uint64_t>> bytes;  // by member and carrier
  };

  // Loads that have no carrier in common, not even through others, know nothing of each other.
  [[nodiscard]] std::vector<Members> components() const {
    std::vector<std::uint32_t> root(rates_.size());
    std::iota(root.begin(), root.end(), 0U);
    const auto find = [&](std::uint32_t rank) {
      while (root[rank] != rank) rank = root[rank] = root[root[rank]];
      return rank;
    };
    for (const auto& load : loads_) {
      for (const auto carrier : load.carriers) root[find(carrier)] = find(load.carriers.front());
    }
    std::map<std::uint32_t, Members> by_root;
    for (std::size_t i = 0; i < loads_.size(); ++i) by_root[find(loads_[i].carriers.front())].push_back(i);
    std::vector<Members> result;
    result.reserve(by_root.size());
    for (auto& [rank, members] : by_root) result.push_back(std::move(members));
    return result;
  }

  // Settles the members that set the makespan, with all of their carriers' time, then the others with what is left.
  void lower(Members members) {
    while (!members.empty()) {
      auto seconds = least_seconds(members);
      Members critical = members;
      auto flow = flow_within(members, seconds);
      while (!flow.is_enough) {
        const auto longer = least_seconds(flow.held_up);
        critical = std::move(flow.held_up);
        seconds = std::max(longer, seconds * (1 + 1e-12));
        flow = flow_within(members, seconds);
      }
      shares_.seconds = std::max(shares_.seconds, seconds);
      settle(members, critical, flow);
    }
  }

  [[nodiscard]] bool is_free(std::uint32_t carrier) const { return !taken_[carrier]; }

  // No way to carry them is faster: all their bytes over the rates of all their carriers.
  [[nodiscard]] double least_seconds(const Members& members) const {
    std::vector<std::uint32_t> carriers;
    double bytes = 0;
    for (const auto member : members) {
      bytes += static_cast<double>(loads_[member].bytes);
      std::copy_if(loads_[member].carriers.begin(), loads_[member].carriers.end(), std::back_inserter(carriers),
                   [&](std::uint32_t carrier) { return is_free(carrier); });
    }
    std::sort(carriers.begin(), carriers.end());
    carriers.erase(std::unique(carriers.begin(), carriers.end()), carriers.end());
    double rate = 0;
    for (const auto carrier : carriers) rate += rates_[carrier];
    return bytes / rate / 1e9;
  }

  [[nodiscard]] Flow flow_within(const Members& members, double seconds) const {
    using Graph = lemon::SmartDigraph;
    Graph graph;
    Graph::ArcMap<std::int64_t> capacity(graph);
    const auto source = graph.addNode();
    const auto sink = graph.addNode();
    const auto add = [&](Graph::Node from, Graph::Node to, std::int64_t most) {
      const auto arc = graph.addArc(from, to);
      capacity[arc] = most;
      return arc;
    };
    std::map<std::uint32_t, Graph::Node> carriers;
    std::vector<Graph::Node> nodes;
    std::vector<std::vector<Graph::Arc>> arcs(members.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
      const auto& load = loads_[members[i]];
      const auto bytes = static_cast<std::int64_t>(load.bytes);
      nodes.push_back(graph.addNode());
      add(source, nodes.back(), bytes);
      total += bytes;
      for (const auto carrier : load.carriers) {
        if (!is_free(carrier)) {
          arcs[i].push_back(lemon::INVALID);
          continue;
        }
        const auto [found, is_new] = carriers.try_emplace(carrier);
        if (is_new) {
          found->second = graph.addNode();
          add(found->second, sink, static_cast<std::int64_t>(rates_[carrier] * 1e9 * seconds) + 1);
        }
        arcs[i].push_back(add(nodes.back(), found->second, kAnyNumber));
      }
    }
    lemon::Preflow<Graph, Graph::ArcMap<std::int64_t>> preflow(graph, capacity, source, sink);
    preflow.run();
    Flow flow;
    flow.is_enough = preflow.flowValue() == total;
    flow.bytes.resize(members.size());
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (!flow.is_enough && preflow.minCut(nodes[i])) flow.held_up.push_back(members[i]);
      for (const auto arc : arcs[i]) {
        flow.bytes[i].push_back(arc == lemon::INVALID ? 0 : static_cast<std::uint64_t>(preflow.flow(arc)));
      }
    }
    return flow;
  }

  // Takes the flow of the critical members and their carriers; leaves the others in `members`.
  void settle(Members& members, const Members& critical, Flow& flow) {
    Members rest;
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (std::binary_search(critical.begin(), critical.end(), members[i])) {
        shares_.bytes[members[i]] = std::move(flow.bytes[i]);
      } else {
        rest.push_back(members[i]);
      }
    }
    auto taken = taken_;
    for (const auto member : critical) {
      for (const auto carrier : loads_[member].carriers) taken[carrier] = true;
    }
    // The slack of a byte per carrier may have served a member that has no other: then this flow serves them all.
    const bool all_go_on = std::all_of(rest.begin(), rest.end(), [&](std::size_t member) {
      const auto& carriers = loads_[member].carriers;
      return std::any_of(carriers.begin(), carriers.end(), [&](std::uint32_t carrier) { return !taken[carrier]; });
    });
    if (!all_go_on) {
      for (std::size_t i = 0; i < members.size(); ++i) {
        if (!flow.bytes[i].empty()) shares_.bytes[members[i]] = std::move(flow.bytes[i]);
      }
      rest.clear();
    }
    taken_ = std::move(taken);
    members = std::move(rest);
  }

  const std::vector<Load>& loads_;
  const std::vector<double>& rates_;
  Shares shares_;
  std::vector<bool> taken_;  // by rank: its time is settled
};

}  // namespace

Shares share(const std::vector<Load>& loads, const std::vector<double>& rates) { return Sharing(loads, rates).run(); }

}  // namespace weightcast

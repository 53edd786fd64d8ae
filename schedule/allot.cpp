#include "schedule/allot.h"

#include <algorithm>
#include <map>
#include <utility>

#include "schedule/blocks.h"
#include "schedule/share.h"

namespace weightcast {
namespace {

// A cut between carriers is moved to the next whole tensor when that shifts less than this part of all they carry.
constexpr double kShift = 0.0003;

std::vector<double> rates_of(const std::vector<RankLinks>& links, std::size_t ranks) {
  std::vector<double> rates(ranks, 1.0);
  const bool all_known = links.size() >= ranks && std::all_of(links.begin(), links.end(),
                                                              [](const RankLinks& link) { return link.nic_gbs > 0; });
  if (all_known) {
    for (std::size_t rank = 0; rank < ranks; ++rank) rates[rank] = links[rank].nic_gbs;
  }
  return rates;
}

// How a part may be cut along one axis without cutting blocks or words.
struct Ruler {
  std::size_t axis = 0;
  std::int64_t unit = 1;
  std::int64_t base = 0;  // where unit 0 begins, at most the box's offset
  std::int64_t units = 1;
};

Ruler ruler_of(const Box& box, const Frame& frame) {
  const auto element = static_cast<std::int64_t>(element_bytes(frame.recipe));
  constexpr std::int64_t kEnough = 64;
  Ruler best;
  best.base = box.offset[0];
  best.unit = box.extent[0];
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    Ruler ruler{axis, 1, box.offset[axis], 1};
    const auto edge = has_scales(frame.recipe) ? block_edge(frame.recipe, box.axes, axis) : 1;
    const bool blocked = edge != 1 && edge != kWholeAxis;
    const bool in_words = axis + 1U == box.axes && element < 8;
    if (blocked || in_words) {
      ruler.unit = blocked ? edge : 8 / element;
      const auto anchor = blocked ? 0 : frame.box.offset[axis];
      ruler.base = anchor + (box.offset[axis] - anchor) / ruler.unit * ruler.unit;
    }
    ruler.units = (box.offset[axis] + box.extent[axis] - ruler.base + ruler.unit - 1) / ruler.unit;
    if (ruler.units > best.units) best = ruler;
    if (best.units >= kEnough) break;  // outer axes first: their pieces are contiguous
  }
  return best;
}

Box piece_of(const Box& box, const Ruler& ruler, std::int64_t begin, std::int64_t end) {
  Box piece = box;
  const auto low = std::max(box.offset[ruler.axis], ruler.base + begin * ruler.unit);
  const auto high = std::min(box.offset[ruler.axis] + box.extent[ruler.axis], ruler.base + end * ruler.unit);
  piece.offset[ruler.axis] = low;
  piece.extent[ruler.axis] = high - low;
  return piece;
}

// A place in the run of a part's tensors: so many whole ones, then so many units of the next.
struct Cut {
  std::uint32_t tensor = 0;
  std::int64_t unit = 0;
  friend auto operator<=>(const Cut&, const Cut&) = default;
};

// From `at` on, until the next change.
struct Change {
  Cut at;
  std::uint32_t carrier = 0;  // position in the line
};

double frame_bytes(const Family& family, const Frame& frame) {
  auto bytes = elements(frame.box) * static_cast<std::int64_t>(element_bytes(frame.recipe));
  if (has_scales(frame.recipe)) {
    bytes += elements(blocks_touched(frame.box, frame.recipe)) * static_cast<std::int64_t>(scale_bytes(frame.recipe));
  }
  return static_cast<double>(bytes) * family.count;
}

// Positions of takers by node; those without NVLink apart.
std::vector<Group> by_node(const Frame& frame, const Topology& topology, bool relay) {
  std::vector<Group> groups;
  std::map<std::uint32_t, std::size_t> of_node;
  for (std::uint32_t i = 0; i < frame.takers.size(); ++i) {
    const auto server = frame.takers[i].server;
    if (!relay || topology.servers[server].nvlink_gbs <= 0) {
      groups.push_back({i});
      continue;
    }
    const auto [found, is_new] = of_node.emplace(topology.servers[server].node, groups.size());
    if (is_new) groups.emplace_back();
    groups[found->second].push_back(i);
  }
  return groups;
}

}  // namespace

// Lines by their carriers.
struct Allotment::Lines {
  explicit Lines(std::vector<Line>& all) : all(all), first(all.size()) {}

  std::size_t with(std::vector<std::uint32_t> carriers) {
    const auto [found, is_new] = known.emplace(std::move(carriers), all.size());
    if (is_new) all.push_back({found->first, 0, {}});
    return found->second;
  }
  Stretch append(std::size_t line, std::uint64_t bytes) {
    const Stretch stretch{line, all[line].bytes};
    all[line].bytes += bytes;
    return stretch;
  }
  // Shares the lines out; returns the seconds until the last carrier is done.
  double finish(const std::vector<double>& rates) {
    std::vector<Load> loads;
    for (auto line = first; line < all.size(); ++line) loads.push_back({all[line].bytes, all[line].carriers});
    const auto shares = share(loads, rates);
    for (std::size_t i = 0; i < loads.size(); ++i) {
      std::uint64_t end = 0;
      for (const auto bytes : shares.bytes[i]) all[first + i].ends.push_back(end += bytes);
    }
    return shares.seconds;
  }

  std::vector<Line>& all;
  std::size_t first;
  std::map<std::vector<std::uint32_t>, std::size_t> known;
};

// What a node's servers take, were every byte received by one of those who take it and passed on to the others.
struct Allotment::NodeLoad {
  double received = 0;  // bytes over all NICs
  double passed_on = 0;
  double nic_gbs = 0;
  double nvlink_gbs = 0;

  // The part of what would be passed on that each takes over its own NIC instead, so that NVLink takes no longer.
  [[nodiscard]] double direct_part() const {
    const double nic_s = received / nic_gbs;
    const double nvlink_s = passed_on / nvlink_gbs;
    return nic_gbs > 0 && nvlink_s > nic_s ? (nvlink_s - nic_s) / (nvlink_s + passed_on / nic_gbs) : 0;
  }
};

Allotment::Allotment(const Matches& matches, const Topology& topology, bool relay) : matches_(matches) {
  group_takers(topology, relay);
  const auto receiving_s = lay_receivers(topology);
  const auto receiver_lines = lines_.size();
  auto sending_s = lay_sources(topology);
  constexpr int kRounds = 8;  // parts that have one group alone cannot be spared, so that others must be spared more
  double fraction = 1;
  for (int round = 0; relay && round < kRounds && sending_s > receiving_s; ++round) {
    fraction *= receiving_s / sending_s;
    spare_sources(fraction);
    lines_.resize(receiver_lines);
    const auto before_s = std::exchange(sending_s, lay_sources(topology));
    if (sending_s >= before_s) break;
  }
}

void Allotment::group_takers(const Topology& topology, bool relay) {
  std::map<std::uint32_t, NodeLoad> nodes;
  for (const auto& links : topology.servers) {
    auto& node = nodes[links.node];
    node.nic_gbs += links.nic_gbs;
    node.nvlink_gbs += links.nvlink_gbs;
  }
  for (const auto& family : matches_.families) {
    auto& by_frame = groups_.emplace_back();
    for (const auto& frame : family.frames) {
      by_frame.push_back(by_node(frame, topology, relay));
      for (const auto& group : by_frame.back()) {
        if (!relay) continue;
        auto& node = nodes[topology.servers[frame.takers[group.front()].server].node];
        node.received += frame_bytes(family, frame);
        node.passed_on += frame_bytes(family, frame) * static_cast<double>(group.size() - 1);
      }
    }
  }
  if (relay) split_groups(topology, nodes);
  for (std::size_t f = 0; f < matches_.families.size(); ++f) {
    auto& direct = direct_.emplace_back();
    for (const auto& part : matches_.families[f].parts) direct.push_back(groups_[f][part.frame].size());
  }
}

// Where NVLink is the slower way: groups of which several members receive, so many that both ways take as long. The
// largest frames first, so that small ones even out what whole groups cannot.
void Allotment::split_groups(const Topology& topology, const std::map<std::uint32_t, NodeLoad>& nodes) {
  struct Item {
    std::size_t family = 0;
    std::size_t frame = 0;
    double bytes = 0;
  };
  std::vector<Item> items;
  for (std::size_t f = 0; f < matches_.families.size(); ++f) {
    const auto& family = matches_.families[f];
    for (std::size_t i = 0; i < family.frames.size(); ++i) {
      items.push_back({f, i, frame_bytes(family, family.frames[i])});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.bytes > b.bytes; });
  std::map<std::uint32_t, double> due;  // by node
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto& item = items[i];
    const auto& frame = matches_.families[item.family].frames[item.frame];
    std::vector<Group> split;
    for (auto& group : groups_[item.family][item.frame]) {
      const auto node = topology.servers[frame.takers[group.front()].server].node;
      auto& owed = due[node];
      owed += nodes.at(node).direct_part() * item.bytes * static_cast<double>(group.size() - 1);
      const auto more = std::min(static_cast<std::size_t>(std::max(0.0, owed / item.bytes + 0.5)), group.size() - 1);
      owed -= item.bytes * static_cast<double>(more);
      if (more == 0) {
        split.push_back(std::move(group));
        continue;
      }
      // Pieces may differ by one member: who is in a small one changes from frame to frame.
      std::rotate(group.begin(), group.begin() + static_cast<std::ptrdiff_t>(i % group.size()), group.end());
      for (std::size_t piece = 0; piece <= more; ++piece) {
        const auto at = [&](std::size_t n) {
          return group.begin() + static_cast<std::ptrdiff_t>(group.size() * n / (more + 1));
        };
        auto& members = split.emplace_back(at(piece), at(piece + 1));
        std::sort(members.begin(), members.end());
      }
    }
    groups_[item.family][item.frame] = std::move(split);
  }
}

// With its part of the frame's scales.
std::uint64_t Allotment::bytes_of(std::size_t family, std::size_t part) const {
  const auto& known = matches_.families[family];
  const auto& box = known.parts[part].box;
  const auto& frame = known.frames[known.parts[part].frame];
  auto bytes = value_bytes(box, frame.recipe);
  if (has_scales(frame.recipe)) {
    const auto whole = static_cast<double>(elements(blocks_touched(frame.box, frame.recipe)) *
                                           static_cast<std::int64_t>(scale_bytes(frame.recipe)));
    bytes += static_cast<std::uint64_t>(whole * static_cast<double>(elements(box)) /
                                        static_cast<double>(elements(frame.box)));
  }
  return bytes * known.count;
}

double Allotment::lay_receivers(const Topology& topology) {
  Lines lines(lines_);
  std::size_t servers = 0;
  for (std::size_t f = 0; f < matches_.families.size(); ++f) {
    const auto& family = matches_.families[f];
    std::vector<std::vector<std::size_t>> line_of(family.frames.size());
    for (std::size_t frame = 0; frame < family.frames.size(); ++frame) {
      for (const auto& group : groups_[f][frame]) {
        std::vector<std::uint32_t> carriers;
        carriers.reserve(group.size());
        for (const auto i : group) carriers.push_back(family.frames[frame].takers[i].server);
        servers = std::max<std::size_t>(servers, carriers.back() + std::size_t{1});
        line_of[frame].push_back(lines.with(std::move(carriers)));
      }
    }
    auto& by_part = receivers_.emplace_back(family.parts.size());
    for (std::size_t part = 0; part < family.parts.size(); ++part) {
      const auto bytes = bytes_of(f, part);
      for (const auto line : line_of[family.parts[part].frame]) by_part[part].push_back(lines.append(line, bytes));
    }
  }
  return lines.finish(rates_of(topology.servers, servers));
}

double Allotment::lay_sources(const Topology& topology) {
  Lines lines(lines_);
  sources_.clear();
  std::size_t trainers = 0;
  for (std::size_t f = 0; f < matches_.families.size(); ++f) {
    const auto& family = matches_.families[f];
    std::vector<std::size_t> line_of;
    for (const auto& shard : family.shards) {
      std::vector<std::uint32_t> carriers;
      for (const auto& holder : shard.holders) carriers.push_back(holder.trainer);
      carriers.erase(std::unique(carriers.begin(), carriers.end()), carriers.end());
      trainers = std::max<std::size_t>(trainers, carriers.back() + std::size_t{1});
      line_of.push_back(lines.with(std::move(carriers)));
    }
    auto& by_part = sources_.emplace_back();
    for (std::size_t part = 0; part < family.parts.size(); ++part) {
      by_part.push_back(lines.append(line_of[family.parts[part].shard], bytes_of(f, part) * direct_[f][part]));
    }
  }
  return lines.finish(rates_of(topology.trainers, trainers));
}

// Trainers are the bottleneck: they put to this fraction of the groups, spread evenly over what each of them sends, and
// to one at least.
void Allotment::spare_sources(double fraction) {
  std::map<std::size_t, double> due;  // by line of sources
  for (std::size_t f = 0; f < matches_.families.size(); ++f) {
    for (std::size_t part = 0; part < direct_[f].size(); ++part) {
      const auto bytes = static_cast<double>(bytes_of(f, part));
      const auto groups = groups_[f][matches_.families[f].parts[part].frame].size();
      auto& owed = due[sources_[f][part].line];
      owed += bytes * fraction * static_cast<double>(groups);
      const auto wanted = owed > 0 ? static_cast<std::size_t>(owed / bytes) : 0;
      direct_[f][part] = std::clamp<std::size_t>(wanted, 1, groups);
      owed -= bytes * static_cast<double>(direct_[f][part]);
    }
  }
}

std::vector<Segment> Allotment::segments(std::size_t f, std::size_t p) const {
  const auto& family = matches_.families[f];
  const auto& part = family.parts[p];
  const auto& frame = family.frames[part.frame];
  const auto& holders = family.shards[part.shard].holders;
  const auto ruler = ruler_of(part.box, frame);
  const auto bytes = bytes_of(f, p);

  std::vector<Cut> cuts = {{0, 0}};
  const auto changes_on = [&](const Stretch& stretch, std::uint64_t length) {
    const auto& line = lines_[stretch.line];
    std::vector<Change> changes;
    std::uint64_t from = 0;
    for (std::uint32_t carrier = 0; carrier < line.ends.size(); from = line.ends[carrier++]) {
      if (line.ends[carrier] <= stretch.begin || from >= stretch.begin + length || from == line.ends[carrier]) continue;
      Cut at;
      if (from > stretch.begin) {
        const auto place = static_cast<double>(from - stretch.begin) / static_cast<double>(length) * family.count;
        const auto whole = std::min<std::uint32_t>(static_cast<std::uint32_t>(place), family.count - 1);
        const auto rest = place - whole;
        const auto one = static_cast<double>(length) / family.count;
        if (std::min(rest, 1 - rest) * one <= kShift * static_cast<double>(line.bytes)) {
          at = {whole + (rest < 0.5 ? 0U : 1U), 0};
        } else {
          at = {whole, static_cast<std::int64_t>(rest * static_cast<double>(ruler.units) + 0.5)};
          if (at.unit == ruler.units) at = {whole + 1, 0};
        }
        if (at.tensor == family.count) continue;
      }
      while (!changes.empty() && changes.back().at == at) changes.pop_back();
      changes.push_back({at, carrier});
    }
    if (changes.empty()) changes.push_back({{}, 0});
    changes.front().at = {};
    for (const auto& change : changes) cuts.push_back(change.at);
    return changes;
  };

  const auto from = changes_on(sources_[f][p], bytes * direct_[f][p]);
  std::vector<std::vector<Change>> to;
  to.reserve(receivers_[f][p].size());
  for (const auto& stretch : receivers_[f][p]) to.push_back(changes_on(stretch, bytes));
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  cuts.push_back({family.count, 0});

  const auto carrier_at = [](const std::vector<Change>& changes, const Cut& cut) {
    const auto next =
        std::upper_bound(changes.begin(), changes.end(), cut, [](const Cut& c, const Change& x) { return c < x.at; });
    return (next - 1)->carrier;
  };
  std::vector<Segment> segments;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    Segment segment;
    const auto& source = lines_[sources_[f][p].line];
    const auto rank = source.carriers[carrier_at(from, cuts[i])];
    segment.caster = *std::find_if(holders.begin(), holders.end(), [&](const Holder& h) { return h.trainer == rank; });
    for (std::size_t group = 0; group < to.size(); ++group) {
      segment.receivers.push_back(groups_[f][part.frame][group][carrier_at(to[group], cuts[i])]);
    }
    const auto add = [&](std::uint32_t first, std::uint32_t count, const Box& box) {
      segment.first = first;
      segment.count = count;
      segment.box = box;
      segments.push_back(segment);
    };
    auto begin = cuts[i];
    const auto& end = cuts[i + 1];
    if (begin.tensor == end.tensor) {
      add(begin.tensor, 1, piece_of(part.box, ruler, begin.unit, end.unit));
      continue;
    }
    if (begin.unit > 0) {
      add(begin.tensor, 1, piece_of(part.box, ruler, begin.unit, ruler.units));
      begin = {begin.tensor + 1, 0};
    }
    if (end.tensor > begin.tensor) add(begin.tensor, end.tensor - begin.tensor, part.box);
    if (end.unit > 0) add(end.tensor, 1, piece_of(part.box, ruler, 0, end.unit));
  }
  return segments;
}

}  // namespace weightcast

// Who sends which tensors of a part, and which server of each node receives them: the planner's choices. For the .cpp
// files of this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "schedule/match.h"
#include "schedule/planner.h"
#include "schedule/topology.h"

namespace weightcast {

// Takers of a frame that receive it once and pass it on among themselves: those of a node that has NVLink, or some of
// them where NVLink would be the slower way; else one.
using Group = std::vector<std::uint32_t>;  // positions in Frame::takers

// Whole tensors of a part, or a piece of one, that go one way.
struct Segment {
  std::uint32_t first = 0;
  std::uint32_t count = 1;
  Box box;
  Holder caster;
  std::vector<std::uint32_t> receivers;  // by group: the position in Frame::takers of the one that receives
};

class Allotment {
 public:
  // Shares the bytes of all parts out over the NICs of those who hold and those who take them. Borrows `matches`.
  Allotment(const Matches& matches, const Topology& topology, bool relay);

  // By frame of the family.
  [[nodiscard]] const std::vector<Group>& groups(std::size_t family, std::size_t frame) const {
    return groups_[family][frame];
  }
  // How many groups of a part the trainer puts to, from the first on; the others get it from an earlier group each.
  [[nodiscard]] std::size_t direct_groups(std::size_t family, std::size_t part) const { return direct_[family][part]; }
  // In the order of tensors. They tile the part.
  [[nodiscard]] std::vector<Segment> segments(std::size_t family, std::size_t part) const;

 private:
  // Loads that the same ranks may carry, one behind the other, and where one carrier's share ends and the next begins.
  struct Line {
    std::vector<std::uint32_t> carriers;
    std::uint64_t bytes = 0;
    std::vector<std::uint64_t> ends;  // by carrier
  };
  struct Lines;
  struct NodeLoad;
  struct Stretch {  // of a line
    std::size_t line = 0;
    std::uint64_t begin = 0;
  };

  void group_takers(const Topology& topology, bool relay);
  void split_groups(const Topology& topology, const std::map<std::uint32_t, NodeLoad>& nodes);
  double lay_receivers(const Topology& topology);
  double lay_sources(const Topology& topology);
  void spare_sources(double fraction);
  [[nodiscard]] std::uint64_t bytes_of(std::size_t family, std::size_t part) const;

  const Matches& matches_;
  std::vector<std::vector<std::vector<Group>>> groups_;       // by family and frame
  std::vector<std::vector<std::size_t>> direct_;              // by family and part
  std::vector<Line> lines_;                                   // of sources and receivers
  std::vector<std::vector<Stretch>> sources_;                 // by family and part
  std::vector<std::vector<std::vector<Stretch>>> receivers_;  // by family, part and group
};

}  // namespace weightcast

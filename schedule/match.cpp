#include "schedule/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "schedule/blocks.h"
#include "schedule/box_index.h"
#include "schedule/families.h"
#include "schedule/refuse.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

// Appends what is left of `box` without `hole`, as disjoint boxes.
void subtract(Box box, const Box& hole, std::vector<Box>& left) {
  const auto common = intersect(box, hole);
  if (!common) {
    left.push_back(box);
    return;
  }
  for (std::size_t axis = 0; axis < box.axes; ++axis) {
    const auto end = box.offset[axis] + box.extent[axis];
    const auto hole_end = common->offset[axis] + common->extent[axis];
    Box side = box;
    side.extent[axis] = common->offset[axis] - box.offset[axis];
    if (side.extent[axis] > 0) left.push_back(side);
    side.offset[axis] = hole_end;
    side.extent[axis] = end - hole_end;
    if (side.extent[axis] > 0) left.push_back(side);
    box.offset[axis] = common->offset[axis];
    box.extent[axis] = common->extent[axis];
  }
}

// Matches one family, by its first tensor: the others are held and taken in the same boxes.
class Matcher {
 public:
  Matcher(const TensorFamily& uses, const std::vector<Column>& columns) : uses_(uses), columns_(columns) {}

  Family match() {
    Family family;
    family.name = uses_.name;
    family.count = uses_.count;
    family.shape = entry_of(uses_.holders.front()).shape;
    require_one_type();
    family.shards = shards();
    family.frames = frames();
    cover(family);
    return family;
  }

 private:
  [[nodiscard]] const Entry& entry_of(const FamilyUse& use) const {
    return use.catalog->entries[columns_[use.column].front()];
  }

  void require_one_type() const {
    const auto& first = uses_.holders.front();
    for (const auto& holder : uses_.holders) {
      const auto type = entry_of(holder).source_type;
      if (type == entry_of(first).source_type) continue;
      refuse(fmt::format("tensor {}: {} holds {}, {} holds {}; all trainers must hold the same type", uses_.name,
                         name_of(*first.catalog), to_string(entry_of(first).source_type), name_of(*holder.catalog),
                         to_string(type)));
    }
  }

  [[nodiscard]] std::vector<Shard> shards() const {
    auto holders = uses_.holders;
    std::stable_sort(holders.begin(), holders.end(),
                     [&](const FamilyUse& a, const FamilyUse& b) { return entry_of(a).box < entry_of(b).box; });
    std::vector<Shard> shards;
    std::vector<Box> boxes;
    for (const auto& holder : holders) {
      const auto& box = entry_of(holder).box;
      if (shards.empty() || shards.back().box != box) {
        shards.push_back({box, {}});
        boxes.push_back(box);
      }
      for (const auto rank : *holder.ranks) shards.back().holders.push_back({rank, holder.column});
    }
    for (auto& shard : shards) std::sort(shard.holders.begin(), shard.holders.end());
    const BoxIndex index(boxes);
    for (std::size_t i = 0; i < boxes.size(); ++i) {
      index.visit(boxes[i], [&](std::size_t other, const Box&) {
        if (other == i) return;
        refuse(
            fmt::format("tensor {}: {} of trainer {} overlaps {} of trainer {}; shards must be the same box "
                        "(replicas) or share nothing",
                        uses_.name, to_string(boxes[i]), shards[i].holders.front().trainer, to_string(boxes[other]),
                        shards[other].holders.front().trainer));
      });
    }
    return shards;
  }

  [[nodiscard]] std::vector<Frame> frames() const {
    auto takers = uses_.takers;
    const auto key = [&](const FamilyUse& use) { return std::tie(entry_of(use).box, entry_of(use).recipe); };
    std::stable_sort(takers.begin(), takers.end(),
                     [&](const FamilyUse& a, const FamilyUse& b) { return key(a) < key(b); });
    std::vector<Frame> frames;
    for (const auto& taker : takers) {
      const auto& [box, recipe] = key(taker);
      if (frames.empty() || frames.back().box != box || frames.back().recipe != recipe) {
        frames.push_back({box, recipe, {}});
      }
      for (const auto rank : *taker.ranks) {
        frames.back().takers.push_back({rank, taker.column, taker.scales, taker.tensor_scale});
      }
    }
    for (auto& frame : frames) {
      std::sort(frame.takers.begin(), frame.takers.end(), [](const Taker& a, const Taker& b) {
        return std::tie(a.server, a.column) < std::tie(b.server, b.column);
      });
    }
    return frames;
  }

  void cover(Family& family) const {
    std::vector<Box> boxes;
    boxes.reserve(family.shards.size());
    for (const auto& shard : family.shards) boxes.push_back(shard.box);
    const BoxIndex index(std::move(boxes));
    for (std::size_t frame = 0; frame < family.frames.size(); ++frame) {
      const auto& box = family.frames[frame].box;
      const auto first = family.parts.size();
      std::int64_t covered = 0;
      index.visit(box, [&](std::size_t shard, const Box& common) {
        family.parts.push_back({shard, frame, common});
        covered += elements(common);
        if (values_of_element(family.frames[frame].recipe) > 1) require_whole_bytes(family, family.parts.back());
      });
      if (covered != elements(box)) refuse_uncovered(family, frame, first);
    }
  }

  static void require_whole_bytes(const Family& family, const Part& part) {
    const auto& frame = family.frames[part.frame];
    if (is_servable(part.box, family.shape, frame.recipe)) return;
    refuse(fmt::format(
        "tensor {}: trainer {} holds {}, which cuts {} of {}, two values to a byte: slices of its "
        "columns must begin and end at multiples of {}",
        family.name, family.shards[part.shard].holders.front().trainer, to_string(family.shards[part.shard].box),
        blocks_text(frame.recipe), to_string(frame.recipe), block_shape(frame.recipe).cols));
  }

  [[noreturn]] static void refuse_uncovered(const Family& family, std::size_t frame, std::size_t first_part) {
    std::vector<Box> missing = {family.frames[frame].box};
    for (auto part = first_part; part < family.parts.size(); ++part) {
      std::vector<Box> left;
      for (const auto& box : missing) subtract(box, family.parts[part].box, left);
      missing = std::move(left);
    }
    refuse(fmt::format(
        "tensor {}: server {} takes {}, of which no trainer holds {}{}; some trainer must hold every "
        "element that a server takes",
        family.name, family.frames[frame].takers.front().server, to_string(family.frames[frame].box),
        to_string(missing.front()), missing.size() > 1 ? fmt::format(" and {} more boxes", missing.size() - 1) : ""));
  }

  const TensorFamily& uses_;
  const std::vector<Column>& columns_;
};

}  // namespace

Matches match(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors) {
  auto found = families_of(catalogs, unused_tensors);
  Matches matches;
  matches.families.reserve(found.families.size());
  for (const auto& family : found.families) matches.families.push_back(Matcher(family, found.columns).match());
  matches.columns = std::move(found.columns);
  matches.trainers = catalogs.trainers.size();
  matches.servers = catalogs.servers.size();
  matches.catalogs_digest = digest_of(catalogs);
  return matches;
}

}  // namespace weightcast

#include "schedule/match.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "schedule/box_index.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(Code::invalid_argument, what); }

// '*' stands for any run of characters.
bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0;
  std::optional<std::pair<std::size_t, std::size_t>> retry;  // after the last '*': pattern, name
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      retry = {++p, n};
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p, ++n;
    } else if (retry) {
      p = retry->first;
      n = ++retry->second;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

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

// All uses of one tensor name.
struct Use {
  std::string_view name;
  std::vector<Holder> holders;
  std::vector<Destination> takers;
};

class Matcher {
 public:
  explicit Matcher(const Catalogs& catalogs) : catalogs_(catalogs) {}

  std::vector<Tensor> match(const std::vector<std::string>& unused_tensors) {
    check_ranks(catalogs_.trainers, Role::trainer);
    check_ranks(catalogs_.servers, Role::server);
    collect();
    require_holders();
    require_takers(unused_tensors);
    std::vector<Tensor> tensors;
    tensors.reserve(uses_.size());
    for (auto& use : uses_) {
      if (!use.takers.empty()) tensors.push_back(match(use));
    }
    return tensors;
  }

 private:
  const Entry& entry_of(const Holder& holder) const { return catalogs_.trainers[holder.trainer].entries[holder.entry]; }
  const Entry& entry_of(const Destination& taker) const {
    return catalogs_.servers[taker.server].entries[taker.column];
  }

  static void check_ranks(const std::vector<Catalog>& catalogs, Role role) {
    if (catalogs.empty()) refuse(fmt::format("there is no {}: nothing to plan", to_string(role)));
    for (std::size_t i = 0; i < catalogs.size(); ++i) {
      if (catalogs[i].role == role && catalogs[i].rank == i) continue;
      refuse(fmt::format("the catalog of {} stands where {} {} is expected: ranks count from 0 without gaps",
                         name_of(catalogs[i]), to_string(role), i));
    }
  }

  Use& use_of(const std::string& name) {
    const auto [found, is_new] = positions_.emplace(name, uses_.size());
    if (is_new) uses_.push_back({name, {}, {}});
    return uses_[found->second];
  }

  void collect() {
    for (const auto& catalog : catalogs_.trainers) {
      for (std::uint32_t i = 0; i < catalog.entries.size(); ++i) {
        use_of(catalog.entries[i].tensor).holders.push_back({catalog.rank, i});
      }
    }
    for (const auto& catalog : catalogs_.servers) {
      for (std::uint32_t i = 0; i < catalog.entries.size(); ++i) {
        const auto& entry = catalog.entries[i];
        if (entry.is_scales) continue;
        if (has_scales(entry.recipe) && (!entry.scales || *entry.scales >= catalog.entries.size())) {
          refuse(fmt::format("tensor {}: {} has no entry for the scales of {}", entry.tensor, name_of(catalog),
                             to_string(entry.box)));
        }
        use_of(entry.tensor).takers.push_back({catalog.rank, i, std::nullopt});
      }
    }
  }

  void require_holders() const {
    const Use* missing = nullptr;
    std::size_t count = 0;
    std::vector<std::string_view> held;
    for (const auto& use : uses_) {
      if (!use.holders.empty()) {
        held.push_back(use.name);
      } else if (++count; missing == nullptr) {
        missing = &use;
      }
    }
    if (missing == nullptr) return;
    auto text = fmt::format("missing tensor {}: {} takes it, no trainer holds it", missing->name,
                            name_of(catalogs_.servers[missing->takers.front().server]));
    if (!held.empty())
      text += fmt::format("; the nearest name that a trainer holds is {}", nearest(missing->name, held));
    if (count > 1) text += fmt::format(" ({} more tensors are missing)", count - 1);
    refuse(text);
  }

  void require_takers(const std::vector<std::string>& unused_tensors) const {
    const Use* extra = nullptr;
    std::size_t count = 0;
    for (const auto& use : uses_) {
      if (!use.takers.empty()) continue;
      const bool known = std::any_of(unused_tensors.begin(), unused_tensors.end(),
                                     [&](const auto& pattern) { return matches(pattern, use.name); });
      if (!known && ++count == 1) extra = &use;
    }
    if (extra == nullptr) return;
    std::vector<std::string_view> taken;
    for (const auto& use : uses_) {
      if (!use.takers.empty()) taken.push_back(use.name);
    }
    auto text = fmt::format("extra tensor {}: {} holds it, no server takes it", extra->name,
                            name_of(catalogs_.trainers[extra->holders.front().trainer]));
    if (!taken.empty())
      text += fmt::format("; the nearest name that a server takes is {}", nearest(extra->name, taken));
    if (count > 1) text += fmt::format(" ({} more tensors have no taker)", count - 1);
    refuse(text + "; if it is not needed, add a pattern for it to unused_tensors");
  }

  Tensor match(const Use& use) const {
    Tensor tensor;
    tensor.name = use.name;
    tensor.shape = &entry_of(use.holders.front()).shape;
    check_shapes(use);
    tensor.shards = shards_of(use);
    tensor.frames = frames_of(use);
    cover(tensor);
    return tensor;
  }

  void check_shapes(const Use& use) const {
    const auto& first = entry_of(use.holders.front());
    const auto first_name = name_of(catalogs_.trainers[use.holders.front().trainer]);
    const auto check = [&](const Entry& entry, const Catalog& catalog) {
      if (entry.shape == first.shape) return;
      refuse(fmt::format("tensor {}: {} has the shape {}, {} has {}", use.name, first_name,
                         to_string(whole(first.shape)), name_of(catalog), to_string(whole(entry.shape))));
    };
    for (const auto& holder : use.holders) {
      const auto& entry = entry_of(holder);
      check(entry, catalogs_.trainers[holder.trainer]);
      if (entry.source_type == first.source_type) continue;
      refuse(fmt::format("tensor {}: {} holds {}, {} holds {}; all trainers must hold the same type", use.name,
                         first_name, to_string(first.source_type), name_of(catalogs_.trainers[holder.trainer]),
                         to_string(entry.source_type)));
    }
    for (const auto& taker : use.takers) check(entry_of(taker), catalogs_.servers[taker.server]);
  }

  std::vector<Shard> shards_of(const Use& use) const {
    auto holders = use.holders;
    std::sort(holders.begin(), holders.end(), [&](const Holder& a, const Holder& b) {
      const auto& box_a = entry_of(a).box;
      const auto& box_b = entry_of(b).box;
      return std::tie(box_a, a) < std::tie(box_b, b);
    });
    std::vector<Shard> shards;
    std::vector<Box> boxes;
    for (const auto& holder : holders) {
      const auto& box = entry_of(holder).box;
      if (shards.empty() || shards.back().box != box) {
        shards.push_back({box, {}});
        boxes.push_back(box);
      }
      shards.back().holders.push_back(holder);
    }
    const BoxIndex index(boxes);
    for (std::size_t i = 0; i < boxes.size(); ++i) {
      index.visit(boxes[i], [&](std::size_t other, const Box&) {
        if (other == i) return;
        refuse(
            fmt::format("tensor {}: {} of {} overlaps {} of {}; shards must be the same box (replicas) or share "
                        "nothing",
                        use.name, to_string(boxes[i]), holder_name(shards[i]), to_string(boxes[other]),
                        holder_name(shards[other])));
      });
    }
    return shards;
  }

  std::string holder_name(const Shard& shard) const {
    return name_of(catalogs_.trainers[shard.holders.front().trainer]);
  }

  std::vector<Frame> frames_of(const Use& use) const {
    auto takers = use.takers;
    const auto key = [&](const Destination& taker) {
      const auto& entry = entry_of(taker);
      return std::tie(entry.box, entry.recipe, taker.server, taker.column);
    };
    std::sort(takers.begin(), takers.end(),
              [&](const Destination& a, const Destination& b) { return key(a) < key(b); });
    std::vector<Frame> frames;
    for (const auto& taker : takers) {
      const auto& entry = entry_of(taker);
      if (frames.empty() || frames.back().box != entry.box || frames.back().recipe != entry.recipe) {
        frames.push_back({entry.box, entry.recipe, {}});
      }
      frames.back().destinations.push_back(taker);
    }
    return frames;
  }

  void cover(Tensor& tensor) const {
    std::vector<Box> boxes;
    boxes.reserve(tensor.shards.size());
    for (const auto& shard : tensor.shards) boxes.push_back(shard.box);
    const BoxIndex index(std::move(boxes));
    for (std::size_t frame = 0; frame < tensor.frames.size(); ++frame) {
      const auto& box = tensor.frames[frame].box;
      const auto first = tensor.parts.size();
      std::int64_t covered = 0;
      index.visit(box, [&](std::size_t shard, const Box& common) {
        tensor.parts.push_back({shard, frame, common, {}});
        covered += elements(common);
      });
      if (covered != elements(box)) refuse_uncovered(tensor, frame, first);
    }
  }

  [[noreturn]] void refuse_uncovered(const Tensor& tensor, std::size_t frame, std::size_t first_part) const {
    std::vector<Box> missing = {tensor.frames[frame].box};
    for (auto part = first_part; part < tensor.parts.size(); ++part) {
      std::vector<Box> left;
      for (const auto& box : missing) subtract(box, tensor.parts[part].box, left);
      missing = std::move(left);
    }
    const auto& destination = tensor.frames[frame].destinations.front();
    refuse(fmt::format("tensor {}: {} takes {}, of which no trainer holds {}{}", tensor.name,
                       name_of(catalogs_.servers[destination.server]), to_string(tensor.frames[frame].box),
                       to_string(missing.front()),
                       missing.size() > 1 ? fmt::format(" and {} more boxes", missing.size() - 1) : ""));
  }

  const Catalogs& catalogs_;
  std::unordered_map<std::string_view, std::size_t> positions_;  // of a name in uses_
  std::vector<Use> uses_;
};

}  // namespace

std::vector<Tensor> match(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors) {
  return Matcher(catalogs).match(unused_tensors);
}

}  // namespace weightcast

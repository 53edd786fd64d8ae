#include "schedule/families.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>

#include "schedule/refuse.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

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

std::uint64_t mix(std::uint64_t state, std::uint64_t number) noexcept {
  state = (state ^ number) * 0x9E3779B97F4A7C15;
  return state ^ state >> 29;
}

std::uint64_t entry_print(const Entry& entry, Role role) noexcept {
  auto print = mix(entry.box.axes,
                   static_cast<std::uint64_t>(role == Role::trainer ? static_cast<unsigned>(entry.source_type)
                                                                    : 256U + static_cast<unsigned>(entry.recipe)));
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    print = mix(print, static_cast<std::uint64_t>(entry.box.offset[axis]));
    print = mix(print, static_cast<std::uint64_t>(entry.box.extent[axis]));
  }
  return print;
}

// Numbers for names. Copies of a name are known by their identity; lists that follow the order of earlier ones are read
// without a look-up.
class Names {
 public:
  std::uint32_t number_of(const SharedText& name) {
    const auto next = last_ + 1;
    if (next < identities_.size() && identities_[next] == name.identity()) return last_ = next;
    if (last_ < identities_.size() && identities_[last_] == name.identity()) return last_;
    if (const auto known = by_identity_.find(name.identity()); known != by_identity_.end()) {
      return last_ = known->second;
    }
    const auto number = static_cast<std::uint32_t>(identities_.size());
    const auto [found, is_new] = by_name_.emplace(name.str(), number);
    if (is_new) {
      identities_.push_back(name.identity());
      names_.push_back(name.str());
    }
    by_identity_.emplace(name.identity(), found->second);
    return last_ = found->second;
  }
  [[nodiscard]] std::size_t size() const { return names_.size(); }
  [[nodiscard]] std::string_view operator[](std::size_t number) const { return names_[number]; }

 private:
  std::uint32_t last_ = 0;
  std::vector<const void*> identities_;
  std::vector<std::string_view> names_;
  std::unordered_map<const void*, std::uint32_t> by_identity_;
  std::unordered_map<std::string_view, std::uint32_t> by_name_;
};

// A list of entries and those who have it.
struct List {
  const Catalog* catalog = nullptr;  // of the first of them
  std::vector<std::uint32_t> ranks;
};

std::vector<List> lists_of(const std::vector<Catalog>& catalogs, Role role) {
  if (catalogs.empty()) refuse(fmt::format("there is no {}: nothing to plan", to_string(role)));
  std::vector<List> lists;
  std::unordered_map<const void*, std::size_t> known;
  for (std::uint32_t rank = 0; rank < catalogs.size(); ++rank) {
    const auto& catalog = catalogs[rank];
    if (catalog.role != role || catalog.rank != rank) {
      refuse(fmt::format("the catalog of {} stands where {} {} is expected: ranks count from 0 without gaps",
                         name_of(catalog), to_string(role), rank));
    }
    const auto [found, is_new] = known.emplace(catalog.entries.identity(), lists.size());
    if (is_new) lists.push_back({&catalog, {}});
    lists[found->second].ranks.push_back(rank);
  }
  return lists;
}

// One entry that holds or takes a tensor.
struct Use {
  std::uint32_t list = 0;
  std::uint32_t entry = 0;
  std::uint32_t scales = 0;
  std::uint32_t tensor_scale = 0;
  std::uint64_t print = 0;
};

// What is known of a name.
struct Known {
  const Catalog* owner = nullptr;  // of the first entry
  const Entry* entry = nullptr;
  const void* shape = nullptr;  // its identity, so that copies of it are known without reading the entry
  std::uint32_t uses = 0;
  const Catalog* holder = nullptr;  // the first trainer
  const Catalog* taker = nullptr;
};

class Grouping {
 public:
  explicit Grouping(const Catalogs& catalogs) : lists_(lists_of(catalogs.trainers, Role::trainer)) {
    auto servers = lists_of(catalogs.servers, Role::server);
    trainer_lists_ = lists_.size();
    lists_.insert(lists_.end(), std::make_move_iterator(servers.begin()), std::make_move_iterator(servers.end()));
  }

  Families group(const std::vector<std::string>& unused_tensors) {
    number_entries();
    require_holders();
    require_takers(unused_tensors);
    if (!shapes_differ_.empty()) refuse(shapes_differ_);
    sort_uses();
    return families();
  }

 private:
  // Reads every entry once, in the order of memory.
  void number_entries() {
    numbers_.resize(lists_.size());
    for (std::size_t list = 0; list < lists_.size(); ++list) {
      const auto& catalog = *lists_[list].catalog;
      const auto& entries = catalog.entries.get();
      numbers_[list].reserve(entries.size());
      for (std::uint32_t index = 0; index < entries.size(); ++index) {
        const auto& entry = entries[index];
        if (entry.is_scales) {
          numbers_[list].push_back({});
          continue;
        }
        const auto number = names_.number_of(entry.tensor);
        require_scales(catalog, entry);
        note(number, catalog, entry);
        numbers_[list].push_back(
            {number + 1, entry.scales.value_or(0), entry.tensor_scale.value_or(0), entry_print(entry, catalog.role)});
      }
    }
  }

  static void require_scales(const Catalog& catalog, const Entry& entry) {
    if (catalog.role == Role::trainer || !has_scales(entry.recipe)) return;
    const auto is_there = [&](std::optional<std::uint32_t> index) { return index && *index < catalog.entries.size(); };
    if (is_there(entry.scales) && (!has_tensor_scale(entry.recipe) || is_there(entry.tensor_scale))) return;
    refuse(fmt::format("tensor {}: {} has no entry for the scales of {}", entry.tensor, name_of(catalog),
                       to_string(entry.box)));
  }

  void note(std::uint32_t number, const Catalog& catalog, const Entry& entry) {
    if (number == known_.size()) known_.push_back({&catalog, &entry, entry.shape.identity()});
    auto& known = known_[number];
    ++known.uses;
    auto& first = catalog.role == Role::trainer ? known.holder : known.taker;
    if (first == nullptr) first = &catalog;
    if (entry.shape.identity() == known.shape || !shapes_differ_.empty() || entry.shape == known.entry->shape) return;
    shapes_differ_ = fmt::format("tensor {}: {} has the shape {}, {} has {}; all must be of one checkpoint",
                                 entry.tensor, name_of(*known.owner), to_string(whole(known.entry->shape.get())),
                                 name_of(catalog), to_string(whole(entry.shape.get())));
  }

  void require_holders() const {
    std::vector<std::string_view> held;
    std::optional<std::size_t> missing;
    std::size_t count = 0;
    for (std::size_t i = 0; i < known_.size(); ++i) {
      if (known_[i].holder != nullptr) {
        held.push_back(names_[i]);
      } else if (count++ == 0) {
        missing = i;
      }
    }
    if (!missing) return;
    auto text = fmt::format("missing tensor {}: {} takes it, no trainer holds it", names_[*missing],
                            name_of(*known_[*missing].taker));
    if (!held.empty()) {
      text += fmt::format("; the nearest name that a trainer holds is {}", nearest(names_[*missing], held));
    }
    if (count > 1) text += fmt::format(" ({} more tensors are missing)", count - 1);
    refuse(text + "; both sides must use the names of one checkpoint");
  }

  void require_takers(const std::vector<std::string>& unused_tensors) const {
    std::vector<std::string_view> taken;
    std::optional<std::size_t> extra;
    std::size_t count = 0;
    for (std::size_t i = 0; i < known_.size(); ++i) {
      if (known_[i].taker != nullptr) {
        taken.push_back(names_[i]);
        continue;
      }
      const bool expected = std::any_of(unused_tensors.begin(), unused_tensors.end(),
                                        [&](const auto& pattern) { return matches(pattern, names_[i]); });
      if (!expected && count++ == 0) extra = i;
    }
    if (!extra) return;
    auto text = fmt::format("extra tensor {}: {} holds it, no server takes it", names_[*extra],
                            name_of(*known_[*extra].holder));
    if (!taken.empty()) {
      text += fmt::format("; the nearest name that a server takes is {}", nearest(names_[*extra], taken));
    }
    if (count > 1) text += fmt::format(" ({} more tensors have no taker)", count - 1);
    refuse(text + "; if it is not needed, add a pattern for it to unused_tensors");
  }

  // By tensor, then by list and entry: a counting sort.
  void sort_uses() {
    begins_.resize(known_.size() + 1);
    for (std::size_t i = 0; i < known_.size(); ++i) begins_[i + 1] = begins_[i] + known_[i].uses;
    uses_.resize(begins_.back());
    auto next = begins_;
    for (std::uint32_t list = 0; list < lists_.size(); ++list) {
      for (std::uint32_t entry = 0; entry < numbers_[list].size(); ++entry) {
        const auto& numbered = numbers_[list][entry];
        if (numbered.number == 0) continue;
        uses_[next[numbered.number - 1]++] = {list, entry, numbered.scales, numbered.tensor_scale, numbered.print};
      }
      numbers_[list] = {};
    }
  }

  [[nodiscard]] std::uint64_t print_of(std::size_t tensor) const {
    std::uint64_t print = 0;
    for (const auto extent : known_[tensor].entry->shape) print = mix(print, static_cast<std::uint64_t>(extent));
    for (auto use = begins_[tensor]; use < begins_[tensor + 1]; ++use) {
      print = mix(mix(print, uses_[use].list), uses_[use].print);
    }
    return print;
  }

  Families families() {
    std::vector<std::vector<std::size_t>> groups;
    std::unordered_map<std::uint64_t, std::size_t> by_print;
    for (std::size_t tensor = 0; tensor < known_.size(); ++tensor) {
      if (known_[tensor].taker == nullptr) continue;
      const auto [found, is_new] = by_print.emplace(print_of(tensor), groups.size());
      if (is_new) groups.emplace_back();
      groups[found->second].push_back(tensor);
    }
    Families result;
    result.ranks.reserve(lists_.size());
    for (const auto& list : lists_) result.ranks.push_back(list.ranks);
    result.families.reserve(groups.size());
    for (const auto& group : groups) result.families.push_back(family_of(group, result));
    return result;
  }

  TensorFamily family_of(const std::vector<std::size_t>& tensors, Families& result) {
    TensorFamily family;
    family.name = names_[tensors.front()];
    family.count = static_cast<std::uint32_t>(tensors.size());
    const auto uses = known_[tensors.front()].uses;
    Column entries(tensors.size());
    Column scales(tensors.size());
    Column tensor_scales(tensors.size());
    for (std::uint32_t use = 0; use < uses; ++use) {
      const auto list = uses_[begins_[tensors.front()] + use].list;
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const auto& one = uses_[begins_[tensors[i]] + use];
        entries[i] = one.entry;
        scales[i] = one.scales;
        tensor_scales[i] = one.tensor_scale;
      }
      const bool holds = list < trainer_lists_;
      const auto& first = lists_[list].catalog->entries[entries.front()];
      const bool scaled = !holds && has_scales(first.recipe);
      auto& side = holds ? family.holders : family.takers;
      side.push_back({lists_[list].catalog, &result.ranks[list], column_of(entries, result.columns),
                      scaled ? column_of(scales, result.columns) : 0,
                      scaled && has_tensor_scale(first.recipe) ? column_of(tensor_scales, result.columns) : 0});
    }
    return family;
  }

  std::uint32_t column_of(const Column& column, std::vector<Column>& columns) {
    auto print = mix(0, column.size());
    for (const auto entry : column) print = mix(print, entry);
    auto& alike = columns_by_print_[print];
    for (const auto known : alike) {
      if (columns[known] == column) return known;
    }
    columns.push_back(column);
    alike.push_back(static_cast<std::uint32_t>(columns.size() - 1));
    return alike.back();
  }

  struct Numbered {
    std::uint32_t number = 0;  // of the tensor, counted from 1; 0: scales
    std::uint32_t scales = 0;
    std::uint32_t tensor_scale = 0;
    std::uint64_t print = 0;
  };

  std::vector<List> lists_;  // of trainers, then of servers
  std::size_t trainer_lists_ = 0;
  Names names_;
  std::vector<Known> known_;                    // by number
  std::vector<std::vector<Numbered>> numbers_;  // by list and entry
  std::string shapes_differ_;                   // the first error of that kind
  std::vector<std::size_t> begins_;             // in uses_, by number; one more at the end
  std::vector<Use> uses_;
  std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> columns_by_print_;
};

}  // namespace

Families families_of(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors) {
  return Grouping(catalogs).group(unused_tensors);
}

}  // namespace weightcast

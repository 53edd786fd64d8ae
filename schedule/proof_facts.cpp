#include <algorithm>
#include <string>

#include "schedule/proof_checks.h"
#include "schedule/proof_geometry.h"

namespace weightcast::proof {
namespace {

bool lies_in_tensor(const Entry& entry) {
  const Box tensor = whole(entry.shape.get());
  if (entry.box.axes != tensor.axes || entry.box.axes == 0 || !contains(tensor, entry.box)) return false;
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    if (entry.box.extent[axis] < 1) return false;
  }
  return true;
}

void check_entry(const Catalog& catalog, std::size_t index, const char* role) {
  const auto& entry = catalog.entries[index];
  const auto where = [&] { return fmt::format("entry {} of {} {} ({})", index, role, catalog.rank, entry.tensor); };
  if (!entry.is_scales && !lies_in_tensor(entry)) {
    violated("{} holds {}, which is not inside its tensor", where(), to_string(entry.box));
  }
  if (catalog.role == Role::trainer) return;
  for (std::size_t axis = 0; axis < entry.box.axes; ++axis) {
    if (entry.box.extent[axis] > 1 && entry.strides_bytes[axis] < 1) {
      violated("{} has a stride of {} bytes on axis {}; a server's are positive", where(), entry.strides_bytes[axis],
               axis);
    }
  }
  if (entry.is_scales || !has_scales(entry.recipe)) return;
  if (!is_of_whole_bytes(entry.box, entry.recipe)) violated("{} cuts bytes of {}", where(), to_string(entry.recipe));
  const auto has = [&](std::optional<std::uint32_t> scales, Recipe recipe) {
    if (!scales || *scales >= catalog.entries.size()) return false;
    const auto& of = catalog.entries[*scales];
    return of.is_scales && of.tensor == entry.tensor && of.recipe == recipe &&
           of.box == blocks_meeting(entry.box, recipe);
  };
  if (!has(entry.scales, entry.recipe)) violated("{} has no entry with the scales of exactly its blocks", where());
  if (has_tensor_scale(entry.recipe) && !has(entry.tensor_scale, Recipe::nvfp4_tensor_scale)) {
    violated("{} has no entry with the scale of its tensor", where());
  }
}

// Memory is a rank's own, even where entries are shared.
void check_regions(const Catalog& catalog, const char* role) {
  for (std::size_t index = 0; index < catalog.entries.size(); ++index) {
    const auto& entry = catalog.entries[index];
    const auto bytes = catalog.role == Role::server ? stored_bytes(entry) : element_bytes(entry.source_type);
    if (entry.region >= catalog.regions.size() || !fits(entry, bytes, catalog.regions[entry.region].bytes)) {
      violated("entry {} of {} {} ({}) does not lie inside a region", index, role, catalog.rank, entry.tensor);
    }
  }
}

bool same_sizes(const std::vector<Region>& a, const std::vector<Region>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Region& x, const Region& y) { return x.bytes == y.bytes; });
}

bool are_alike(const Entry& a, const Entry& b) {
  return a.box == b.box && a.recipe == b.recipe && a.source_type == b.source_type && a.is_scales == b.is_scales &&
         a.shape == b.shape;
}

}  // namespace

CatalogFacts::CatalogFacts(const Catalogs& catalogs) : catalogs_(catalogs) {
  add_side(catalogs.trainers, Role::trainer, trainer_lists_);
  add_side(catalogs.servers, Role::server, server_lists_);
}

void CatalogFacts::add_side(const std::vector<Catalog>& catalogs, Role role, std::vector<std::size_t>& lists) {
  const auto* name = role == Role::trainer ? "trainer" : "server";
  std::unordered_map<const void*, std::size_t> known;
  for (std::size_t rank = 0; rank < catalogs.size(); ++rank) {
    const auto& catalog = catalogs[rank];
    if (catalog.role != role || catalog.rank != rank) {
      violated("the catalog in place {} is that of {} {}", rank, to_string(catalog.role), catalog.rank);
    }
    const auto [found, is_new] = known.emplace(catalog.entries.identity(), lists_.size());
    lists.push_back(found->second);
    if (is_new) {
      lists_.push_back({&catalog, {}});
      for (std::size_t index = 0; index < catalog.entries.size(); ++index) check_entry(catalog, index, name);
      mark_entries(lists_.back());
    }
    if (is_new || !same_sizes(catalog.regions, lists_[found->second].catalog->regions)) check_regions(catalog, name);
  }
}

void CatalogFacts::mark_entries(List& list) {
  list.marks.reserve(list.catalog->entries.size());
  for (const auto& entry : list.catalog->entries) list.marks.push_back({number_of(entry.tensor), kind_of(entry)});
}

// Most lists name the tensors of another one in its order: then the next number is the one looked for.
std::uint32_t CatalogFacts::number_of(const SharedText& name) {
  if (last_number_ < names_.size() && names_[last_number_] == name.identity()) return last_number_;  // its scales
  const auto next = last_number_ + 1;
  if (next < names_.size() && names_[next] == name.identity()) return last_number_ = next;
  const auto [known, is_new] = numbers_.try_emplace(name.identity());
  if (is_new) {
    const auto number = static_cast<std::uint32_t>(names_.size());
    known->second = numbers_by_name_.try_emplace(name.str(), number).first->second;
    if (known->second == number) names_.push_back(name.identity());
  }
  return last_number_ = known->second;
}

std::uint32_t CatalogFacts::kind_of(const Entry& entry) {
  if (!kinds_.empty()) {
    const auto next = kinds_[last_kind_].next;
    if (are_alike(entry, *kinds_[next].first)) return last_kind_ = next;
  }
  auto& alike = kinds_by_box_[entry.box];
  auto found = std::find_if(alike.begin(), alike.end(),
                            [&](std::uint32_t kind) { return are_alike(entry, *kinds_[kind].first); });
  if (found == alike.end()) {
    found = alike.insert(found, static_cast<std::uint32_t>(kinds_.size()));
    kinds_.push_back({&entry});
  }
  kinds_[last_kind_].next = *found;
  return last_kind_ = *found;
}

std::string Facts::read(std::size_t list, std::uint32_t column) {
  const auto& [catalog, marks] = known_.lists()[list];
  const auto& indexes = plan_.columns[column];
  if (indexes.empty()) return "it is empty";
  ColumnFacts facts;
  facts.tensors.reserve(indexes.size());
  for (const auto index : indexes) {
    if (index >= marks.size()) return fmt::format("there is no entry {}, there are {}", index, marks.size());
    if (marks[index].kind != marks[indexes.front()].kind) {
      return fmt::format("its entries {} and {} are not the same box in the same format", indexes.front(), index);
    }
    facts.tensors.push_back(marks[index].tensor);
  }
  facts.entry = &catalog->entries[indexes.front()];
  facts_.push_back(std::move(facts));
  return {};
}

bool Facts::same_tensors(const ColumnFacts& a, const ColumnFacts& b, std::uint32_t first, std::uint32_t count) {
  const auto begin = static_cast<std::ptrdiff_t>(first);
  const auto end = begin + static_cast<std::ptrdiff_t>(count);
  return b.tensors.size() >= static_cast<std::size_t>(end) &&
         std::equal(a.tensors.begin() + begin, a.tensors.begin() + end, b.tensors.begin() + begin);
}

}  // namespace weightcast::proof

// The checks that make up the proof, in the order in which they run: each may rely on those before it.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "schedule/plan.h"
#include "schedule/proof.h"
#include "transport/base/status.h"

namespace weightcast::proof {

template <class... Args>
[[noreturn]] void violated(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(Code::corrupted,
              fmt::format("the plan is wrong and is not used: {}", fmt::format(format, std::forward<Args>(args)...)));
}

// What is known of the catalogs before there is a plan, read once for all ranks that share a list of entries.
class CatalogFacts {
 public:
  // Equal numbers: the same tensor; the same box in the same format.
  struct Mark {
    std::uint32_t tensor = 0;
    std::uint32_t kind = 0;
  };
  struct List {
    const Catalog* catalog = nullptr;  // of the first rank that has it
    std::vector<Mark> marks;           // by entry
  };

  // Checks the catalogs: ranks in their places, boxes within tensors, memory within regions, scales of whole blocks.
  // They must outlive it.
  explicit CatalogFacts(const Catalogs& catalogs);

  [[nodiscard]] const Catalogs& catalogs() const { return catalogs_; }
  [[nodiscard]] const std::vector<List>& lists() const { return lists_; }
  // The list that a rank has, by rank.
  [[nodiscard]] const std::vector<std::size_t>& of_trainers() const { return trainer_lists_; }
  [[nodiscard]] const std::vector<std::size_t>& of_servers() const { return server_lists_; }

 private:
  void add_side(const std::vector<Catalog>& catalogs, Role role, std::vector<std::size_t>& lists);
  void mark_entries(List& list);
  std::uint32_t number_of(const SharedText& name);
  std::uint32_t kind_of(const Entry& entry);

  const Catalogs& catalogs_;
  std::vector<List> lists_;
  std::vector<std::size_t> trainer_lists_;
  std::vector<std::size_t> server_lists_;
  std::uint32_t last_number_ = 0;
  std::vector<const void*> names_;                          // by number: the identity of a name
  std::unordered_map<const void*, std::uint32_t> numbers_;  // by the identity of a name
  std::unordered_map<std::string_view, std::uint32_t> numbers_by_name_;
  struct Kind {
    const Entry* first = nullptr;
    std::uint32_t next = 0;  // the kind that followed last: layers repeat
  };
  std::uint32_t last_kind_ = 0;
  std::vector<Kind> kinds_;
  std::map<Box, std::vector<std::uint32_t>> kinds_by_box_;
};

// What a column means in the catalog of a rank. All of its entries are alike but for their tensor and address.
struct ColumnFacts {
  const Entry* entry = nullptr;        // the first
  std::vector<std::uint32_t> tensors;  // numbers of names, one an entry
  std::size_t checked = SIZE_MAX;      // the last step that was compared with it, for check_routes
};

// The columns of a plan in the catalogs, each read once for all ranks that share a list of entries.
class Facts {
 public:
  Facts(const Plan& plan, const CatalogFacts& known)
      : plan_(plan), known_(known), places_(known.lists().size() * plan.columns.size()) {}

  // Which list of entries a server has; servers of one list are alike.
  [[nodiscard]] std::size_t list_of_server(std::uint32_t server) const { return known_.of_servers()[server]; }

  // Throws the violation when the rank or the column does not exist, or the entries differ; `who` says what names it.
  template <class Who>
  ColumnFacts& trainer(std::uint32_t rank, std::uint32_t column, const Who& who) {
    const auto& lists = known_.of_trainers();
    if (rank >= lists.size()) violated("{} is for trainer {}, but there are {} trainers", who(), rank, lists.size());
    return column_of(lists[rank], column, who);
  }
  template <class Who>
  ColumnFacts& server(std::uint32_t rank, std::uint32_t column, const Who& who) {
    const auto& lists = known_.of_servers();
    if (rank >= lists.size()) violated("{} goes to server {}, but there are {} servers", who(), rank, lists.size());
    return column_of(lists[rank], column, who);
  }

  // Tensors first to first + count of both columns are the same ones.
  [[nodiscard]] static bool same_tensors(const ColumnFacts& a, const ColumnFacts& b, std::uint32_t first,
                                         std::uint32_t count);

 private:
  template <class Who>
  ColumnFacts& column_of(std::size_t list, std::uint32_t column, const Who& who) {
    if (column >= plan_.columns.size()) violated("{} names column {}, which does not exist", who(), column);
    auto& place = places_[list * plan_.columns.size() + column];
    if (place == 0) {
      std::string wrong = read(list, column);
      if (!wrong.empty()) violated("{} names column {}: {}", who(), column, wrong);
      place = static_cast<std::uint32_t>(facts_.size());
    }
    return facts_[place - 1];
  }
  std::string read(std::size_t list, std::uint32_t column);

  const Plan& plan_;
  const CatalogFacts& known_;
  std::vector<std::uint32_t> places_;  // by list and column: in facts_, counted from 1; 0: not read yet
  std::deque<ColumnFacts> facts_;      // references to them stay valid
};

// "step 4 (trainer 0 sends model.norm.weight [0:144])"
[[nodiscard]] std::string describe(const Plan& plan, const Catalogs& catalogs, std::size_t step);
[[nodiscard]] std::string describe_scales(const Plan& plan, const Catalogs& catalogs, std::size_t scale_step);

// Every index points at something, every source box is owned by the trainer that sends it, every destination takes that
// box of that tensor in that recipe, and relays come before those whom they serve. Sets relayed_bytes.
void check_routes(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof);
// No two entries of a server share a byte of a region.
void check_memory(const Catalogs& catalogs);
// Every element of every entry of every server is written exactly once. Sets destination_bytes and scales.
void check_coverage(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof);
// Everybody who casts a block, or writes its scale, is given the amax of all of it. Sets waiting_steps.
void check_amax(const Plan& plan, const Catalogs& catalogs, Facts& facts, Proof& proof);
// The pieces in which a step is cast and put are a partition of its box, cut where digests add up.
void check_chunks(const Plan& plan, const Catalogs& catalogs);
// trainer_bytes, server_bytes and server_loads are the sums of the steps.
void check_totals(const Plan& plan, const Catalogs& catalogs, const Topology& topology);

}  // namespace weightcast::proof

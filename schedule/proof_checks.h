// The checks that make up the proof, in the order in which they run: each may rely on those before it.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <deque>
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

// What a column means in the catalog of a rank. All of its entries are alike but for their tensor and address.
struct ColumnFacts {
  const Entry* entry = nullptr;        // the first
  std::vector<std::uint32_t> tensors;  // numbers of names, one an entry
  std::size_t checked = SIZE_MAX;      // the last step that was compared with it, for check_routes
};

// Catalogs and columns, read once for all ranks that share a list of entries.
class Facts {
 public:
  // Checks the catalogs: ranks in their places, boxes within tensors, memory within regions, scales of whole blocks.
  Facts(const Plan& plan, const Catalogs& catalogs);

  // Which list of entries a server has; servers of one list are alike.
  [[nodiscard]] std::size_t list_of_server(std::uint32_t server) const { return server_lists_[server]; }
  [[nodiscard]] std::size_t servers_lists_end() const { return catalogs_of_lists_.size(); }

  // Throws the violation when the rank or the column does not exist, or the entries differ; `who` says what names it.
  template <class Who>
  ColumnFacts& trainer(std::uint32_t rank, std::uint32_t column, const Who& who) {
    if (rank >= trainer_lists_.size()) {
      violated("{} is for trainer {}, but there are {} trainers", who(), rank, trainer_lists_.size());
    }
    return column_of(trainer_lists_[rank], column, who);
  }
  template <class Who>
  ColumnFacts& server(std::uint32_t rank, std::uint32_t column, const Who& who) {
    if (rank >= server_lists_.size()) {
      violated("{} goes to server {}, but there are {} servers", who(), rank, server_lists_.size());
    }
    return column_of(server_lists_[rank], column, who);
  }

  // Tensors first to first + count of both columns are the same ones.
  [[nodiscard]] static bool same_tensors(const ColumnFacts& a, const ColumnFacts& b, std::uint32_t first,
                                         std::uint32_t count);

 private:
  void add_side(const std::vector<Catalog>& catalogs, Role role, std::vector<std::size_t>& lists);
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
  std::uint32_t number_of(const SharedText& name);

  const Plan& plan_;
  std::vector<const Catalog*> catalogs_of_lists_;
  std::vector<std::size_t> trainer_lists_;  // by rank
  std::vector<std::size_t> server_lists_;
  std::vector<std::uint32_t> places_;  // by list and column: in facts_, counted from 1; 0: not read yet
  std::deque<ColumnFacts> facts_;      // references to them stay valid
  std::uint32_t last_number_ = 0;
  std::vector<const void*> names_;                          // by number: the identity of a name
  std::unordered_map<const void*, std::uint32_t> numbers_;  // by the identity of a name
  std::unordered_map<std::string_view, std::uint32_t> numbers_by_name_;
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

// Tensors that are held and taken alike: by the same ranks, in the same boxes and formats. For the .cpp files of this
// folder that plan.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "schedule/plan.h"

namespace weightcast {

// Ranks that list the same entries, and where these entries have a family's tensors.
struct FamilyUse {
  const Catalog* catalog = nullptr;                   // of the first of the ranks
  const std::vector<std::uint32_t>* ranks = nullptr;  // ascending; borrowed from Families
  std::uint32_t column = 0;
  std::uint32_t scales = 0;        // the column of the scales, where a server's recipe has some
  std::uint32_t tensor_scale = 0;  // and of the tensor's scale
};

struct TensorFamily {
  std::string_view name;  // of the first tensor
  std::uint32_t count = 0;
  std::vector<FamilyUse> holders;  // by rank
  std::vector<FamilyUse> takers;
};

struct Families {
  std::vector<Column> columns;                    // no two alike
  std::vector<TensorFamily> families;             // that a server takes, in the order in which trainers list them
  std::vector<std::vector<std::uint32_t>> ranks;  // what FamilyUse::ranks points into
};

// Borrows from `catalogs`. Linear in the entries of ranks that share no list with another. Throws what make_plan()
// promises of names, shapes and ranks. Families are told apart by 64-bit fingerprints; a plan that relied on two that
// collide would not be proved.
[[nodiscard]] Families families_of(const Catalogs& catalogs, const std::vector<std::string>& unused_tensors);

}  // namespace weightcast

// The checks that make up the proof, in the order in which they run: each may rely on those before it.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "schedule/plan.h"
#include "schedule/proof.h"
#include "transport/base/status.h"

namespace weightcast::proof {

template <class... Args>
[[noreturn]] void violated(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(Code::corrupted,
              fmt::format("the plan is wrong and is not used: {}", fmt::format(format, std::forward<Args>(args)...)));
}

// "step 4 (trainer 0 sends model.norm.weight [0:144])"
[[nodiscard]] std::string describe(const Plan& plan, const Catalogs& catalogs, std::size_t step);
[[nodiscard]] std::string describe_scales(const Plan& plan, const Catalogs& catalogs, std::size_t scale_step);

// The same plan with a step for each tensor, whose columns are replaced by the entries that they name.
[[nodiscard]] Plan tensor_by_tensor(const Plan& families);
// Every index points at something, every source box is owned by the trainer that sends it, and every destination
// takes that box of that tensor in that recipe.
void check_routes(const Plan& plan, const Catalogs& catalogs);
// Sweeps the bytes of every region of every server: entries and nothing else, each byte once. Sets
// destination_bytes, put_extents and scales.
void check_coverage(const Plan& plan, const Catalogs& catalogs, Proof& proof);
// Everybody who casts a block, or writes its scale, is given the amax of all of it. Sets straddling_blocks.
void check_amax(const Plan& plan, const Catalogs& catalogs, Proof& proof);
// The pieces in which a step is cast and put are a partition of its box, cut where digests add up.
void check_chunks(const Plan& plan, const Catalogs& catalogs);
// trainer_bytes and server_bytes are the sums of the steps.
void check_totals(const Plan& plan, const Catalogs& catalogs);

}  // namespace weightcast::proof

// The proof of a plan: shares no code with the planner, runs on every plan before the first byte moves.
#pragma once

#include <cstdint>

#include "schedule/plan.h"

namespace weightcast {

struct Proof {
  std::uint64_t destination_bytes = 0;  // each written exactly once
  std::uint64_t put_extents = 0;        // contiguous runs of destination bytes
  std::uint64_t scales = 0;             // each written by exactly one owner
  std::uint64_t straddling_blocks = 0;  // whose amax is exchanged, completely
};

// Checks on physical addresses (region, byte): every destination byte of every server written exactly once, every
// source byte owned by the trainer that sends it, every scale written once, and every caster of a block given
// the amax of all of that block. Throws Error{corrupted} with the first violation.
[[nodiscard]] Proof prove(const Plan& plan, const Catalogs& catalogs);

}  // namespace weightcast

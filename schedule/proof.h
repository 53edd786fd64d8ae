// The proof of a plan: shares no code with the planner, runs on every plan before the first byte moves.
#pragma once

#include <cstdint>
#include <memory>

#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

namespace proof {
class CatalogFacts;
}

struct Proof {
  std::uint64_t destination_bytes = 0;  // each written exactly once
  std::uint64_t scales = 0;             // each written by exactly one owner
  std::uint64_t relayed_bytes = 0;      // of destination_bytes, by a server that has received them before
  std::uint64_t waiting_steps = 0;      // that cast with maxima of other shards, which are all sent
};

// Checks that every element of every entry of every server is written exactly once and that no two entries of a server
// share a byte; that every source byte is owned by the trainer that sends it, in one tensor and format on both sides;
// that who passes bytes on has received them; that every scale is written once, and every caster of a block given the
// amax of all of that block. Throws Error{corrupted} with the first violation. `topology` tells NVLink from NICs in the
// totals; without it every rank is a node of its own.
[[nodiscard]] Proof prove(const Plan& plan, const Catalogs& catalogs, const Topology& topology = {});

// The same in two steps: half of the work needs no plan, and can be done on another core while the plan is being made.
class Prover {
 public:
  // Throws what is wrong with the catalogs, which must outlive it.
  explicit Prover(const Catalogs& catalogs);
  Prover(const Prover&) = delete;
  Prover& operator=(const Prover&) = delete;
  Prover(Prover&&) noexcept;
  Prover& operator=(Prover&&) noexcept;
  ~Prover();

  [[nodiscard]] Proof prove(const Plan& plan, const Topology& topology = {}) const;

 private:
  std::unique_ptr<const proof::CatalogFacts> facts_;
};

}  // namespace weightcast

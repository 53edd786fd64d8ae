// Where a server's bytes land and how they become the live weights: the seam behind which ways to land differ.
//   staged     trainers put into a shadow of the live regions; commit copies it over, in one batch
//   in_place   trainers put into the live regions; commit has nothing to copy
//
// Threads: prepare() on one thread and never during an update; the others from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "plugin/messages.h"
#include "schedule/catalog.h"
#include "transport/fabric.h"

namespace weightcast {

class LandingMemory {
 public:
  LandingMemory() = default;
  LandingMemory(const LandingMemory&) = delete;
  LandingMemory& operator=(const LandingMemory&) = delete;
  virtual ~LandingMemory() = default;

  // Takes and registers the landing memory, which goes with the fabric; again when that one is gone. Throws Error:
  // unavailable when it does not fit.
  virtual void prepare(Fabric& fabric) = 0;
  // What peers need to put here: the fabric's regions for the card, and where each catalog region lies in them.
  [[nodiscard]] virtual std::vector<RegionId> regions() const = 0;
  [[nodiscard]] virtual std::vector<Placement> placements() const = 0;
  // First byte of a catalog region in the landing memory.
  [[nodiscard]] virtual std::byte* region_start(std::uint32_t region) const = 0;
  // Makes the landed bytes live, but for entries of class staged_repair, which the host copies; and writes packed
  // scales.
  virtual void commit() noexcept = 0;
};

// Bytes that commit() copies from a shadow of a region to the region, sorted, adjacent ones joined.
struct StagedRun {
  std::uint32_t region = 0;  // of the catalog
  std::uint64_t byte_offset = 0;
  std::uint64_t bytes = 0;
};
[[nodiscard]] std::vector<StagedRun> staged_runs(const Catalog& catalog);

// `kind` is "staged" or "in_place"; `catalog` has addresses and outlives the landing, as `fabric` does. `threads` in
// all copy what commit() makes live in host memory.
[[nodiscard]] std::unique_ptr<LandingMemory> make_landing(const std::string& kind, const Catalog& catalog,
                                                          std::size_t threads = 1);

}  // namespace weightcast

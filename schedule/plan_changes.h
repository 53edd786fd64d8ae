// What differs between two plans: after a rank left or joined, or between two scenarios.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/bound.h"
#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

struct RankChange {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  std::uint64_t bytes_before = 0;  // that it sends or takes
  std::uint64_t bytes_after = 0;
};

// Pairs of a sender and a server. A pair is kept when it carries the same boxes of the same tensors, by the same relay.
struct PlanChanges {
  std::uint64_t pairs_kept = 0;
  std::uint64_t pairs_changed = 0;
  std::uint64_t pairs_new = 0;
  std::uint64_t pairs_gone = 0;
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  std::uint64_t bytes_moved = 0;  // that pairs carry more than before
  std::vector<RankChange> ranks;  // the largest change first
};

// What a comparison needs of a plan, whether it was made just now or saved.
struct PlanOutline {
  // What a trainer sends to a server, by itself or, as far as `relay` says, by way of another server.
  struct Pair {
    std::uint32_t trainer = 0;
    std::optional<std::uint32_t> relay;
    std::uint32_t server = 0;
    std::uint64_t bytes = 0;
    std::uint64_t content = 0;  // adds up over boxes and tensors: order and grouping of steps do not count
    friend bool operator==(const Pair&, const Pair&) = default;
  };
  std::vector<Pair> pairs;  // by trainer, relay and server
  std::vector<std::uint64_t> trainer_bytes;
  std::vector<std::uint64_t> server_bytes;
  Bound bound;
  double makespan_s = 0;  // on ideal links; 0: no rate is known
};

// Linear in the steps' tensors and destinations.
[[nodiscard]] PlanOutline outline_of(const Plan& plan, const Catalogs& catalogs, const Topology& topology,
                                     const Bound& bound);

// The whole plan with its outline, as `weightcast plan --steps` writes it; parse_outline reads the outline back.
[[nodiscard]] std::string to_json(const Plan& plan, const PlanOutline& outline);
// True when the document's "format" is a plan's.
[[nodiscard]] bool is_saved_plan(std::string_view json_text);
// Throws Error{invalid_argument} naming `origin` and the JSON pointer.
[[nodiscard]] PlanOutline parse_outline(std::string_view json_text, const std::string& origin);

[[nodiscard]] PlanChanges changes_between(const PlanOutline& before, const PlanOutline& after);
// One screen.
[[nodiscard]] std::string to_text(const PlanChanges& changes, const PlanOutline& before, const PlanOutline& after);
[[nodiscard]] std::string to_json(const PlanChanges& changes, const PlanOutline& before, const PlanOutline& after);

}  // namespace weightcast

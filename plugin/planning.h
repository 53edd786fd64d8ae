// Everything between catalogs and tables: plans, proves, encodes.
#pragma once

#include <optional>
#include <string_view>
#include <utility>

#include "plugin/controller_core.h"
#include "schedule/config.h"
#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

// Of one thread.
class Planning {
 public:
  explicit Planning(const Config& config) : config_(config) {}

  [[nodiscard]] PlanMade answer_to(const MakePlan& request);
  // And how it came about: "made", or "changed" from that of all ranks, which costs a fraction (see replan.h).
  [[nodiscard]] std::pair<Plan, std::string_view> plan_for(const MakePlan& request);

 private:
  // Of the first time when no rank was absent: what later plans are made from, so that no change outlives its cause.
  struct Whole {
    Catalogs catalogs;
    Topology topology;
    Plan plan;
  };
  [[nodiscard]] bool has_links_of_whole(const MakePlan& request) const;

  const Config config_;
  std::optional<Whole> whole_;
};

}  // namespace weightcast

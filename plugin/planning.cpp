#include "plugin/planning.h"

#include <algorithm>

#include "schedule/planner.h"
#include "schedule/proof.h"
#include "schedule/replan.h"
#include "schedule/server_tables.h"
#include "transport/base/log.h"
#include "transport/base/units.h"

namespace weightcast {

PlanMade Planning::answer_to(const MakePlan& request) {
  PlanMade answer;
  answer.generation = request.generation;
  try {
    const auto start = Clock::now();
    const auto [plan, how] = plan_for(request);
    const double planned_s = seconds_since(start);
    const Proof proof = prove(plan, request.catalogs, request.topology);
    log_info("plan {}: {} steps, {} bytes, {} in {:.3f} s, proved in {:.3f} s", request.generation, plan.steps.size(),
             proof.destination_bytes, how, planned_s, seconds_since(start) - planned_s);
    answer.server_bytes = plan.server_bytes;
    for (const Catalog& catalog : request.catalogs.trainers) {
      answer.tables[{Role::trainer, catalog.rank}] = encode(trainer_table(plan, request.catalogs, catalog.rank));
    }
    const ServerTables server_tables(plan, request.catalogs);
    for (const Catalog& catalog : request.catalogs.servers) {
      answer.tables[{Role::server, catalog.rank}] = encode(server_tables.of(catalog.rank));
    }
    answer.feeds = server_tables.feeds();
  } catch (const Error& error) {
    answer.status = error.status();
  }
  return answer;
}

std::pair<Plan, std::string_view> Planning::plan_for(const MakePlan& request) {
  if (whole_ && has_links_of_whole(request)) {
    try {
      return {replan(whole_->plan, whole_->catalogs, request.catalogs, request.topology), "changed"};
    } catch (const Error&) {  // a rank has come back with other entries, or nobody else holds what a lost one did
    }
  }
  Plan plan = make_plan(request.catalogs, request.topology,
                        {.chunk_bytes = config_.performance.chunk_bytes,
                         .unused_tensors = config_.unused_tensors,
                         .relay = config_.performance.relay});
  const auto is_there = [](const Catalog& catalog) { return !catalog.entries.empty(); };
  const auto& [trainers, servers] = request.catalogs;
  if (std::all_of(trainers.begin(), trainers.end(), is_there) &&
      std::all_of(servers.begin(), servers.end(), is_there)) {
    whole_ = Whole{request.catalogs, request.topology, plan};
  }
  return {std::move(plan), "made"};
}

bool Planning::has_links_of_whole(const MakePlan& request) const {
  const auto alike = [](const std::vector<RankLinks>& now, const std::vector<RankLinks>& before,
                        const std::vector<Catalog>& catalogs) {
    if (now.size() != before.size()) return false;
    for (std::size_t rank = 0; rank < now.size(); ++rank) {
      if (!catalogs[rank].entries.empty() && now[rank] != before[rank]) return false;
    }
    return true;
  };
  return alike(request.topology.trainers, whole_->topology.trainers, request.catalogs.trainers) &&
         alike(request.topology.servers, whole_->topology.servers, request.catalogs.servers);
}

}  // namespace weightcast

#include "schedule/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "schedule/simulation.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

using simulation::Endpoint;
using simulation::Lane;
using std::uint32_t;

std::vector<Endpoint> endpoints_of(const Catalogs& catalogs, const Topology& topology,
                                   const SimulationOptions& options) {
  std::vector<Endpoint> endpoints;
  const auto add = [&](Role role, std::size_t ranks, const std::vector<RankLinks>& links) {
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      if (rank >= links.size() || links[rank].nic_gbs <= 0) {
        throw Error(Code::invalid_argument,
                    fmt::format("{} {} has no NIC rate: simulate a scenario, or give the rates of catalogs",
                                to_string(role), rank));
      }
      const auto& link = links[rank];
      const double nic = link.nic_gbs * options.link_efficiency * 1e9;
      endpoints.push_back({nic, nic, link.nvlink_gbs * 1e9, link.node, 1});
    }
  };
  add(Role::trainer, catalogs.trainers.size(), topology.trainers);
  add(Role::server, catalogs.servers.size(), topology.servers);
  for (const auto& straggler : options.stragglers) {
    const bool is_trainer = straggler.role == Role::trainer;
    const auto ranks = is_trainer ? catalogs.trainers.size() : catalogs.servers.size();
    if (straggler.rank >= ranks) {
      throw Error(Code::invalid_argument, fmt::format("there is no {} {} that could be a straggler: there are {}",
                                                      to_string(straggler.role), straggler.rank, ranks));
    }
    endpoints[(is_trainer ? 0 : catalogs.trainers.size()) + straggler.rank].slower = straggler.factor;
  }
  return endpoints;
}

double seconds(std::uint64_t bytes, double gbs) { return gbs > 0 ? static_cast<double>(bytes) / (gbs * 1e9) : 0; }

// Verification once all has arrived, then the commit: both are a server's own.
void finish_servers(const Plan& plan, const SimulationOptions& options, const std::vector<Endpoint>& endpoints,
                    simulation::Outcome& outcome, SimulationResult& result) {
  const auto trainers = plan.trainer_bytes.size();
  for (std::size_t server = 0; server < plan.server_bytes.size(); ++server) {
    const double slower = endpoints[trainers + server].slower;
    const double verify_s = seconds(plan.server_bytes[server], options.verify_gbs) * slower;
    outcome.busy_s[Lane::kVerify][trainers + server] = verify_s;
    result.landed_s = std::max(result.landed_s, outcome.landed_s[server]);
    result.server_ready_s.push_back(outcome.landed_s[server] + verify_s);
    result.makespan_s = std::max(result.makespan_s, result.server_ready_s.back());
    const double copy_ms = seconds(plan.server_bytes[server], options.copy_gbs) * 1e3 * slower;
    const auto changed =
        static_cast<std::uint64_t>(static_cast<double>(plan.server_bytes[server]) * options.delta_changed);
    const double scatter_ms = seconds(changed, options.delta_scatter_gbs) * 1e3 * slower;
    result.staged_stall_ms = std::max(result.staged_stall_ms, options.commit_ms + copy_ms);
    result.delta_stall_ms = std::max(result.delta_stall_ms, options.commit_ms + scatter_ms);
  }
  result.in_place_stall_ms = result.makespan_s * 1e3 + options.control_ms + options.commit_ms;
  const double commit_from = result.makespan_s + options.control_ms * 1e-3;
  for (std::size_t server = 0; server < plan.server_bytes.size(); ++server) {
    const auto rank = static_cast<uint32_t>(server);
    const auto span = [&](Lane lane, double begin, double end) {
      if (end > begin) {
        result.spans.push_back({Role::server, rank, lane, static_cast<float>(begin), static_cast<float>(end)});
      }
    };
    span(Lane::kVerify, outcome.landed_s[server], result.server_ready_s[server]);
    span(Lane::kCommit, commit_from, commit_from + result.staged_stall_ms * 1e-3);
  }
}

void judge(const simulation::Outcome& outcome, std::size_t trainers, SimulationResult& result) {
  double most = 0;
  for (std::size_t lane = 0; lane < Lane::kCommit; ++lane) {
    const auto& busy = outcome.busy_s[lane];
    const auto busiest = std::max_element(busy.begin(), busy.end());
    if (busiest == busy.end() || *busiest <= 0) continue;
    const auto ranks = std::count_if(busy.begin(), busy.end(), [](double s) { return s > 0; });
    const auto at = static_cast<std::size_t>(busiest - busy.begin());
    StageUse use{lanes()[lane],
                 std::accumulate(busy.begin(), busy.end(), 0.0) / static_cast<double>(ranks) / result.makespan_s,
                 *busiest / result.makespan_s, at < trainers ? Role::trainer : Role::server,
                 static_cast<uint32_t>(at < trainers ? at : at - trainers)};
    if (use.most > most) {
      most = use.most;
      result.binding = fmt::format("{} of {} {}, busy {:.0f} % of the time", use.stage, to_string(use.role), use.rank,
                                   100 * use.most);
    }
    result.stages.push_back(use);
  }
}

}  // namespace

const std::vector<std::string_view>& lanes() {
  static const std::vector<std::string_view> names = {"prepare", "send", "take", "relay", "verify", "commit"};
  return names;
}

SimulationResult simulate(const Plan& plan, const Catalogs& catalogs, const Topology& topology,
                          const SimulationOptions& options) {
  const auto endpoints = endpoints_of(catalogs, topology, options);
  const auto work = options.gather ? simulation::gathered_work_of(plan, catalogs, *options.gather)
                                   : simulation::work_of(plan, catalogs);
  auto outcome = simulation::run(work, endpoints, options);
  SimulationResult result;
  result.trainer_done_s = outcome.sent_s;
  result.transfers = outcome.transfers;
  result.grain_bytes = work.grain_bytes;
  result.spans = std::move(outcome.spans);
  finish_servers(plan, options, endpoints, outcome, result);
  judge(outcome, catalogs.trainers.size(), result);
  return result;
}

}  // namespace weightcast

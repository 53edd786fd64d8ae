// The inside of the simulator: what each trainer has to send, and the events of sending it. For simulate*.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/plan.h"
#include "schedule/simulate.h"

namespace weightcast::simulation {

// A server that takes a load: from the trainer, or from an earlier hop of its route, which passes it on.
struct Hop {
  static constexpr std::uint32_t kTrainer = UINT32_MAX;
  std::uint32_t server = 0;
  std::uint32_t from = kTrainer;  // index into the route
  friend auto operator<=>(const Hop&, const Hop&) = default;
};
using RouteHops = std::vector<Hop>;

// Chunks of one trainer that follow each other and take the same route.
struct Load {
  std::uint64_t source_bytes = 0;
  std::uint64_t bytes = 0;    // to each server
  std::uint64_t scratch = 0;  // bytes held until all its puts are complete
  std::uint32_t puts = 0;     // to each server
  std::uint32_t route = 0;
  double gather_s = 0;  // of the trainer's thread, before the cast
  bool needs_amax = false;
  bool is_second_group = false;  // begins when every trainer has come to its second group
};

struct Workload {
  std::vector<RouteHops> routes;
  std::vector<std::vector<Load>> trainers;            // in the order of execution
  std::vector<std::uint64_t> amax_source_bytes;       // that a trainer reads before anything else, for others
  std::vector<std::vector<std::uint32_t>> amax_from;  // who a trainer waits for
  std::uint64_t chunk_bytes = 0;                      // of the plan
  std::uint64_t grain_bytes = 0;                      // most of a load
};

// The plan as it stands. Loads are as large as chunks, or larger where there would be too many to simulate.
[[nodiscard]] Workload work_of(const Plan& plan, const Catalogs& catalogs);
// The same bytes to the same servers by the published way.
[[nodiscard]] Workload gathered_work_of(const Plan& plan, const Catalogs& catalogs, const GatherBehaviour& behaviour);

// Of each rank, trainers first, then servers. Bytes a second.
struct Endpoint {
  double out = 0;  // its NICs
  double in = 0;
  double nvlink = 0;  // per direction; 0: none
  std::uint32_t node = 0;
  double slower = 1;  // a straggler's factor
};

struct Outcome {
  std::vector<double> sent_s;               // by trainer: its last put complete
  std::vector<double> landed_s;             // by server: its last byte
  std::vector<std::vector<double>> busy_s;  // by lane and endpoint
  std::vector<Span> spans;
  std::uint64_t transfers = 0;
};
enum Lane : std::uint8_t { kPrepare = 0, kSend, kTake, kRelay, kVerify, kCommit, kLanes };

[[nodiscard]] Outcome run(const Workload& work, const std::vector<Endpoint>& endpoints,
                          const SimulationOptions& options);

}  // namespace weightcast::simulation

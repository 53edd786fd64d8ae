// What an update would take on a cluster that need not exist: a discrete-event simulation of the plan. Every trainer
// prepares its chunks in order (host to device, cast) into scratch of bounded size and puts them to every server that
// takes them, at most `window` puts in flight for each pair; servers pass on what they relay; each link serves one
// chunk at a time, in order of arrival, at its rate, which over many chunks shares it fairly. Pure: same input, same
// result; randomness comes from the seed.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "schedule/plan.h"
#include "schedule/topology.h"

namespace weightcast {

struct Straggler {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  double factor = 1;  // its links and its cast are this many times slower
};

// The published way, to be told to the simulator: trainers gather whole tensors (collectively, all ranks that hold a
// shard of it, in the same order), then the least loaded of them casts and puts what each server takes. One thread
// does all this, tensor after tensor, in time with the bytes of its own shards; what is no expert comes first, and
// nobody begins with the experts before everybody has gathered the rest. Cast and host link take no further time.
struct GatherBehaviour {
  double thread_ms = 0;     // of a trainer's thread in one update, mean over the trainers
  std::string expert_part;  // a tensor whose name has it is of the second group
};

// Rates in GB/s; 0: takes no time. Where each value comes from stands in the scenario (`sources`).
struct SimulationOptions {
  double link_efficiency = 1;               // of a NIC's rate that bytes of weights reach
  std::uint32_t window = 8;                 // puts in flight from one sender to one server
  std::uint64_t scratch_bytes = 256 << 20;  // of a trainer, for cast chunks on their way
  double put_overhead_us = 0;               // of the sender's NIC for each put, beyond the bytes
  double latency_us = 0;                    // of a put, from its last byte sent to its completion
  double cast_gbs = 0;                      // source bytes that a trainer casts
  double h2d_gbs = 0;                       // of a trainer whose weights are in host memory
  double verify_gbs = 0;                    // bytes that a server digests, once all have arrived
  double copy_gbs = 0;                      // bytes that a server copies from shadow to live memory
  double commit_ms = 0;                     // of a commit, beyond its copy: the engine's call, the launch
  double control_ms = 0;                    // from the last server's word to everybody's commit; an in-place pause too
  double delta_changed = 0.02;              // elements that differ from the last version; for the stall of a delta
  double delta_scatter_gbs = 0;             // changed bytes that a commit scatters
  std::uint32_t incast_senders = 8;         // so many share a server's NIC without loss
  double incast_penalty = 0;                // for each sender more: its rate is divided by 1 + this much
  double jitter = 0;                        // mean of the exponentially distributed slowdown of each put
  std::uint64_t seed = 1;
  std::vector<Straggler> stragglers;
  std::optional<GatherBehaviour> gather;
};

// What a rank does at a time, for pictures: `lane` is one of lanes().
struct Span {
  Role role = Role::trainer;
  std::uint32_t rank = 0;
  std::uint8_t lane = 0;
  float begin_s = 0;
  float end_s = 0;
};
// "prepare", "send", "take", "relay", "verify", "commit"
[[nodiscard]] const std::vector<std::string_view>& lanes();

// How busy the ranks are with one stage, over the makespan.
struct StageUse {
  std::string_view stage;
  double mean = 0;  // over the ranks that have it, 0 to 1
  double most = 0;
  Role role = Role::trainer;  // the busiest
  std::uint32_t rank = 0;
};

struct SimulationResult {
  double makespan_s = 0;  // from push until the last server has verified everything
  double landed_s = 0;    // until the last byte has landed
  std::string binding;    // the busiest stage and rank, "take of server 3, busy 98 % of the time"
  std::vector<StageUse> stages;
  std::vector<double> trainer_done_s;  // its last put complete
  std::vector<double> server_ready_s;  // verified
  double staged_stall_ms = 0;          // the longest of a server
  double in_place_stall_ms = 0;        // the engine is paused while the bytes arrive
  double delta_stall_ms = 0;
  std::uint64_t transfers = 0;    // simulated, each of one or more puts
  std::uint64_t grain_bytes = 0;  // of the largest of them
  std::vector<Span> spans;        // neighbours closer than a five-hundredth of the makespan are one
};

// Throws Error{invalid_argument} when a rank of the options does not exist or a link has no rate.
[[nodiscard]] SimulationResult simulate(const Plan& plan, const Catalogs& catalogs, const Topology& topology,
                                        const SimulationOptions& options);

}  // namespace weightcast

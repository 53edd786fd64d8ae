// A cluster that need not exist: a model's published configuration, how trainers and servers divide it, and their
// links. Its catalogs are those that the real ranks would send, so planner, proof and bound know nothing of it.
// The JSON form is in schedule/FORMATS.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quant/recipe.h"
#include "schedule/model_shapes.h"
#include "schedule/plan.h"
#include "schedule/simulate.h"
#include "schedule/topology.h"

namespace weightcast {

// The GPUs of one side and their links; rates in GB/s, per direction.
struct Hardware {
  std::uint32_t nodes = 1;
  std::uint32_t gpus_per_node = 1;
  std::uint32_t nics_per_gpu = 1;
  double nic_gbs = 0;     // of one NIC
  double nvlink_gbs = 0;  // of one GPU; 0: none
};

// Ranks are a grid of these axes. A stage's layers are divided over tp, then each rank's part in rows (dim 0) over
// fsdp, in chunks of ceil(rows / ranks); routed experts are dealt out over ep.
struct TrainerLayout {
  enum Axis : std::uint8_t { kPipeline = 0, kReplica, kFsdp, kContext, kExpert, kTensor };
  static constexpr std::size_t kAxes = 6;

  std::array<std::uint32_t, kAxes> ranks = {1, 1, 1, 1, 1, 1};
  std::array<Axis, kAxes> order = {kPipeline, kReplica, kFsdp, kContext, kExpert, kTensor};  // outermost first
  std::vector<std::int64_t> layers_per_stage;
  bool shard_over_ep = true;  // fsdp of what is no expert goes over the ranks of ep too; else each has a replica
};

// Several replicas of pp stages of dp x tp ranks, tp innermost. Attention, MLP and vocabulary are divided over tp and
// replicated over dp; routed experts are dealt out over ep, which divides dp x tp, and divided over what is left.
struct ServerLayout {
  std::uint32_t replicas = 1;
  std::uint32_t pp = 1;
  std::uint32_t dp = 1;
  std::uint32_t tp = 1;
  std::uint32_t ep = 1;
  bool split_attention = true;  // over tp; else every rank has all heads
  std::vector<std::int64_t> layers_per_stage;
};

struct ServerPool {
  ServerLayout layout;
  Hardware hardware;
};

struct Scenario {
  std::string origin;  // for messages: the file
  std::string about;
  ModelConfig model;
  Recipe recipe = Recipe::bf16;  // of projections on servers; everything else is BF16
  TrainerLayout trainers;
  Hardware trainer_hardware;
  std::vector<ServerPool> servers;  // ranks and replicas count on from pool to pool
  SimulationOptions simulation;
};

// True when the document's "format" is a scenario's, so that it may be told from a catalog.
[[nodiscard]] bool is_scenario(std::string_view json_text);

// Throws Error{invalid_argument} naming `origin` and the JSON pointer: unknown keys, layouts that do not divide the
// model, ranks that are not as many as the GPUs.
[[nodiscard]] Scenario parse_scenario(std::string_view json_text, const std::string& origin);

// Throws Error{invalid_argument} naming origin, pool, tensor and rank when a recipe cannot be applied to a slice.
[[nodiscard]] Catalogs catalogs_of(const Scenario& scenario);
// Trainers and servers share no node.
[[nodiscard]] Topology topology_of(const Scenario& scenario);

}  // namespace weightcast

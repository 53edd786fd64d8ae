#include "schedule/scenario.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>

#include "schedule/blocks.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

// `rank` of so many.
struct Share {
  std::uint32_t rank = 0;
  std::uint32_t ranks = 1;
};

struct Rows {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

// Chunks of ceil(count / ranks), the last ones short or empty: what FSDP2 and torch.chunk give.
Rows chunk(Rows rows, Share share) {
  const auto size = (rows.count + share.ranks - 1) / share.ranks;
  const auto begin = std::min(rows.count, share.rank * size);
  return {rows.first + begin, std::min(size, rows.count - begin)};
}

Rows equal_part(std::int64_t size, Share share) { return {share.rank * (size / share.ranks), size / share.ranks}; }

// What tensor parallelism gives a rank of the tensor's axis.
Rows divide(const ModelTensor& tensor, const ModelConfig& model, Share share) {
  const auto size = tensor.shape[tensor.axis];
  switch (tensor.division) {
    case Division::none: break;
    case Division::heads:
    case Division::mlp: return equal_part(size, share);
    case Division::kv_heads: {
      const auto queries = equal_part(model.num_attention_heads, share);
      const auto group = model.num_attention_heads / model.num_key_value_heads;
      const auto first = queries.first / group;
      const auto end = (queries.first + queries.count + group - 1) / group;
      const auto rows = size / model.num_key_value_heads;
      return {first * rows, (end - first) * rows};
    }
    case Division::vocabulary: return chunk({0, size}, share);
  }
  return {0, size};
}

Box box_of(const ModelTensor& tensor, std::size_t axis, Rows rows) {
  Box box = whole(tensor.shape);
  box.offset[axis] = rows.first;
  box.extent[axis] = rows.count;
  return box;
}

// The stage of each layer, counted from layer -1 on: what comes before the first and after the last goes along.
std::vector<std::size_t> stages_of(const std::vector<std::int64_t>& layers_per_stage) {
  std::vector<std::size_t> stages = {0};
  for (std::size_t stage = 0; stage < layers_per_stage.size(); ++stage) {
    stages.insert(stages.end(), static_cast<std::size_t>(layers_per_stage[stage]), stage);
  }
  stages.push_back(layers_per_stage.size() - 1);
  return stages;
}

// Tensors by stage. The last stage needs the embeddings too when they are its output matrix.
std::vector<std::vector<const ModelTensor*>> tensors_by_stage(const std::vector<ModelTensor>& tensors,
                                                              const ModelConfig& model,
                                                              const std::vector<std::int64_t>& layers_per_stage) {
  const auto stages = stages_of(layers_per_stage);
  std::vector<std::vector<const ModelTensor*>> result(layers_per_stage.size());
  for (const auto& tensor : tensors) {
    result[stages[static_cast<std::size_t>(tensor.layer + 1)]].push_back(&tensor);
  }
  if (model.tie_word_embeddings && result.size() > 1) result.back().push_back(&tensors.front());
  return result;
}

// Entries laid out one after the other.
void lay(Catalog& catalog, Entry entry, std::uint32_t region, std::uint64_t element_bytes) {
  const Box stored = stored_box(entry, entry.box);
  constexpr std::uint64_t kWordBytes = 8;  // digests count words
  auto& memory = catalog.regions[region];
  entry.region = region;
  entry.byte_offset = memory.bytes;
  auto stride = static_cast<std::int64_t>(element_bytes);
  for (std::size_t axis = entry.box.axes; axis-- > 0;) {
    entry.strides_bytes[axis] = stride;
    stride *= stored.extent[axis];
  }
  memory.bytes += (static_cast<std::uint64_t>(stride) + kWordBytes - 1) / kWordBytes * kWordBytes;
  catalog.entries.push_back(std::move(entry));
}

// The list is at its final length.
void close(Catalog& catalog) { catalog.entries.edit().shrink_to_fit(); }

// ---- trainers ----

using Coordinates = std::array<std::uint32_t, TrainerLayout::kAxes>;

Coordinates coordinates_of(std::uint32_t rank, const TrainerLayout& layout) {
  Coordinates at{};
  for (auto axis = layout.order.rbegin(); axis != layout.order.rend(); ++axis) {
    at[*axis] = rank % layout.ranks[*axis];
    rank /= layout.ranks[*axis];
  }
  return at;
}

// What a trainer holds of a tensor of its stage; nothing when the others hold all of it.
std::optional<Box> shard_of(const ModelTensor& tensor, const ModelConfig& model, const TrainerLayout& layout,
                            const Coordinates& at) {
  const auto share = [&](TrainerLayout::Axis axis) { return Share{at[axis], layout.ranks[axis]}; };
  Share fsdp = share(TrainerLayout::kFsdp);
  const auto ep = share(TrainerLayout::kExpert);
  if (tensor.expert) {
    if (*tensor.expert / (model.experts / ep.ranks) != ep.rank) return std::nullopt;
  } else if (layout.shard_over_ep) {
    fsdp = {fsdp.rank * ep.ranks + ep.rank, fsdp.ranks * ep.ranks};
  }
  Box box = box_of(tensor, tensor.axis, divide(tensor, model, share(TrainerLayout::kTensor)));
  const auto rows = chunk({box.offset[0], box.extent[0]}, fsdp);
  box.offset[0] = rows.first;
  box.extent[0] = rows.count;
  if (elements(box) == 0) return std::nullopt;
  return box;
}

Catalog trainer_of(std::uint32_t rank, const Scenario& scenario,
                   const std::vector<std::vector<const ModelTensor*>>& stages) {
  const auto at = coordinates_of(rank, scenario.trainers);
  Catalog catalog{Role::trainer, rank, 0, {{"shards"}}, {}};
  for (const auto* tensor : stages[at[TrainerLayout::kPipeline]]) {
    const auto box = shard_of(*tensor, scenario.model, scenario.trainers, at);
    if (!box) continue;
    Entry entry;
    entry.tensor = tensor->name;
    entry.shape = tensor->shape;
    entry.box = *box;
    entry.source_type = tensor->is_fp32 ? SourceType::fp32 : SourceType::bf16;
    const auto bytes = element_bytes(entry.source_type);
    lay(catalog, std::move(entry), 0, bytes);
  }
  close(catalog);
  return catalog;
}

// Replicas of one another share one list of entries.
std::vector<Catalog> trainers_of(const Scenario& scenario, const std::vector<ModelTensor>& tensors) {
  const auto& layout = scenario.trainers;
  const auto stages = tensors_by_stage(tensors, scenario.model, layout.layers_per_stage);
  const auto ranks = std::accumulate(layout.ranks.begin(), layout.ranks.end(), 1U, std::multiplies<>());
  std::map<Coordinates, std::uint32_t> firsts;
  std::vector<Catalog> trainers;
  trainers.reserve(ranks);
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    auto at = coordinates_of(rank, layout);
    at[TrainerLayout::kReplica] = at[TrainerLayout::kContext] = 0;
    const auto [first, is_new] = firsts.emplace(at, rank);
    trainers.push_back(is_new ? trainer_of(rank, scenario, stages) : trainers[first->second]);
    trainers.back().rank = rank;
  }
  return trainers;
}

// ---- servers ----

// What rank `rank` of a stage takes of a tensor of that stage.
std::optional<Box> slice_of(const ModelTensor& tensor, const ModelConfig& model, const ServerLayout& layout,
                            std::uint32_t rank) {
  Share share{rank % layout.tp, layout.tp};
  if (tensor.expert) {
    const auto divided = layout.dp * layout.tp / layout.ep;
    if (*tensor.expert / (model.experts / layout.ep) != rank / divided) return std::nullopt;
    share = {rank % divided, divided};
  } else if (!layout.split_attention && tensor.division != Division::mlp && tensor.division != Division::vocabulary) {
    share = {};
  }
  const auto box = box_of(tensor, tensor.axis, divide(tensor, model, share));
  if (elements(box) == 0) return std::nullopt;
  return box;
}

Recipe recipe_of(const ModelTensor& tensor, const Scenario& scenario) {
  if (tensor.is_fp32) return Recipe::fp32;
  return tensor.is_projection ? scenario.recipe : Recipe::bf16;
}

void take(Catalog& catalog, const ModelTensor& tensor, const Box& box, Recipe recipe,
          const SharedList<std::int64_t>& grid) {
  constexpr std::uint32_t kWeights = 0;
  constexpr std::uint32_t kScales = 1;
  Entry entry;
  entry.tensor = tensor.name;
  entry.shape = tensor.shape;
  entry.box = box;
  entry.recipe = recipe;
  if (!has_scales(recipe)) return lay(catalog, std::move(entry), kWeights, element_bytes(recipe));
  const auto scales_under = [&](Recipe of, const SharedList<std::int64_t>& shape) {
    Entry scales;
    scales.tensor = tensor.name;
    scales.shape = shape;
    scales.box = blocks_touched(box, of);
    scales.recipe = of;
    scales.is_scales = true;
    return scales;
  };
  entry.scales = static_cast<std::uint32_t>(catalog.entries.size() + 1);
  if (has_tensor_scale(recipe)) entry.tensor_scale = *entry.scales + 1;
  lay(catalog, std::move(entry), kWeights, element_bytes(recipe));
  lay(catalog, scales_under(recipe, grid), kScales, scale_bytes(recipe));
  if (!has_tensor_scale(recipe)) return;
  const Recipe of = Recipe::nvfp4_tensor_scale;
  lay(catalog, scales_under(of, block_grid(tensor.shape, of)), kScales, scale_bytes(of));
}

class PoolServers {
 public:
  PoolServers(const Scenario& scenario, std::size_t pool, const std::vector<ModelTensor>& tensors)
      : scenario_(scenario), pool_(pool), tensors_(tensors) {
    for (const auto& tensor : tensors) {
      const auto [grid, is_new] = grids_.try_emplace(tensor.shape.identity());
      if (is_new) grid->second = block_grid(tensor.shape, scenario.recipe);
    }
  }

  // Replicas of one another share one list of entries.
  void add_to(std::vector<Catalog>& servers, std::uint32_t first_replica) const {
    const auto& layout = scenario_.servers[pool_].layout;
    const auto stages = tensors_by_stage(tensors_, scenario_.model, layout.layers_per_stage);
    const auto ranks = layout.dp * layout.tp;
    const auto first = servers.size();
    for (std::uint32_t i = 0; i < layout.replicas * layout.pp * ranks; ++i) {
      const auto rank = static_cast<std::uint32_t>(servers.size());
      const auto in_replica = i % (layout.pp * ranks);
      const auto replica = first_replica + i / (layout.pp * ranks);
      if (i == in_replica) {
        servers.push_back(server_of(rank, replica, i % ranks, stages[i / ranks]));
      } else {
        servers.push_back(servers[first + in_replica]);
        servers.back().rank = rank;
        servers.back().replica = replica;
      }
    }
  }

 private:
  [[nodiscard]] Catalog server_of(std::uint32_t rank, std::uint32_t replica, std::uint32_t rank_of_stage,
                                  const std::vector<const ModelTensor*>& stage) const {
    Catalog catalog{Role::server, rank, replica, {{"weights"}, {"scales"}}, {}};
    if (!has_scales(scenario_.recipe)) catalog.regions.pop_back();
    for (const auto* tensor : stage) {
      const auto box = slice_of(*tensor, scenario_.model, scenario_.servers[pool_].layout, rank_of_stage);
      if (!box) continue;
      const auto recipe = recipe_of(*tensor, scenario_);
      if (has_scales(recipe) && !is_servable(*box, tensor->shape, recipe)) {
        throw Error(Code::invalid_argument,
                    fmt::format("{}: /servers/{}/layout: the slice {} of tensor {} on {} cuts {}, and the recipe {} "
                                "needs whole ones; lower tp or raise ep",
                                scenario_.origin, pool_, to_string(*box), tensor->name, name_of(catalog),
                                blocks_text(recipe), to_string(recipe)));
      }
      take(catalog, *tensor, *box, recipe, grids_.at(tensor->shape.identity()));
    }
    close(catalog);
    return catalog;
  }

  const Scenario& scenario_;
  std::size_t pool_;
  const std::vector<ModelTensor>& tensors_;
  std::unordered_map<const void*, SharedList<std::int64_t>> grids_;  // of blocks, by the identity of a shape
};

// Nodes count on from one pool to the next, and from trainers to servers.
void add_links(const Hardware& hardware, std::uint32_t& first_node, std::vector<RankLinks>& links) {
  for (std::uint32_t i = 0; i < hardware.nodes * hardware.gpus_per_node; ++i) {
    links.push_back(
        {first_node + i / hardware.gpus_per_node, hardware.nics_per_gpu * hardware.nic_gbs, hardware.nvlink_gbs});
  }
  first_node += hardware.nodes;
}

}  // namespace

Catalogs catalogs_of(const Scenario& scenario) {
  const auto tensors = tensors_of(scenario.model);
  Catalogs catalogs;
  catalogs.trainers = trainers_of(scenario, tensors);
  std::uint32_t replica = 0;
  for (std::size_t pool = 0; pool < scenario.servers.size(); ++pool) {
    PoolServers(scenario, pool, tensors).add_to(catalogs.servers, replica);
    replica += scenario.servers[pool].layout.replicas;
  }
  return catalogs;
}

Topology topology_of(const Scenario& scenario) {
  Topology topology;
  std::uint32_t node = 0;
  add_links(scenario.trainer_hardware, node, topology.trainers);
  for (const auto& pool : scenario.servers) add_links(pool.hardware, node, topology.servers);
  return topology;
}

}  // namespace weightcast

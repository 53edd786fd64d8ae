// The scenario as JSON, see FORMATS.md.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "schedule/blocks.h"
#include "schedule/catalog_check.h"
#include "schedule/place.h"
#include "schedule/scenario.h"
#include "schedule/simulation_json.h"
#include "schedule/strict_json.h"
#include "transport/base/status.h"

namespace weightcast {
namespace {

constexpr std::string_view kScenarioFormat = "weightcast.scenario/1";
constexpr std::size_t kMaxScenarioBytes = std::size_t{1} << 20;
// Far above any model, and small enough that the bytes of all its tensors fit into 63 bits.
constexpr std::int64_t kMaxSize = 1 << 20;  // of an axis
constexpr std::int64_t kMaxHeads = 1 << 12;
constexpr std::int64_t kMaxHeadDim = 1 << 12;
constexpr std::int64_t kMaxLayers = 1 << 10;
constexpr std::int64_t kMaxExperts = 1 << 17;  // of all layers together
constexpr std::int64_t kMaxSharedExperts = 1 << 6;
constexpr std::int64_t kMaxRanks = 1 << 14;
constexpr std::size_t kMaxPools = 64;

constexpr std::array<std::string_view, TrainerLayout::kAxes> kAxisNames = {"pp", "dp", "fsdp", "cp", "ep", "tp"};

using Family = ModelConfig::Family;
constexpr std::array<std::pair<std::string_view, Family>, 6> kFamilies = {{{"llama", Family::llama},
                                                                           {"qwen2", Family::qwen2},
                                                                           {"qwen3", Family::qwen3},
                                                                           {"qwen3_moe", Family::qwen3_moe},
                                                                           {"deepseek_v3", Family::deepseek_v3},
                                                                           {"kimi_k2", Family::deepseek_v3}}};

std::int64_t size_at(const Place& place, std::string_view key, std::int64_t most = kMaxSize) {
  return place.at(key).integer(1, most);
}

std::int64_t size_or(const Place& place, std::string_view key, std::int64_t otherwise, std::int64_t most = kMaxSize) {
  const auto least = std::min<std::int64_t>(otherwise, 1);
  return place.has(key) && !place.at(key).value().is_null() ? place.at(key).integer(least, most) : otherwise;
}

std::uint32_t ranks_or_one(const Place& place, std::string_view key) {
  return place.has(key) ? static_cast<std::uint32_t>(place.at(key).integer(1, kMaxRanks)) : 1;
}

// ---- the model ----

Family family_of(const Place& place) {
  const auto& name = place.text(kMaxNameBytes);
  std::vector<std::string_view> known;
  for (const auto& [type, family] : kFamilies) {
    if (type == name) return family;
    known.push_back(type);
  }
  place.fail(fmt::format("\"{}\" is not supported; supported are {}", name.substr(0, 100), fmt::join(known, ", ")));
}

// Only keys that decide shapes, and the commonest of those that do not.
void require_model_keys(const Place& place) {
  place.require_keys(
      {"model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "num_key_value_heads",
       "head_dim", "intermediate_size", "tie_word_embeddings", "num_experts", "n_routed_experts",
       "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace", "q_lora_rank", "kv_lora_rank",
       "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
       // Without influence on shapes.
       "architectures", "dtype", "is_llama_config", "layer_types", "mlp_bias", "attention_bias", "attention_dropout",
       "auto_map", "aux_loss_alpha", "bos_token_id", "decoder_sparse_step", "ep_size", "eos_token_id", "hidden_act",
       "initializer_range", "max_position_embeddings", "max_window_layers", "mlp_only_layers", "moe_layer_freq",
       "n_group", "norm_topk_prob", "num_experts_per_tok", "num_nextn_predict_layers", "output_router_logits",
       "pad_token_id", "pretraining_tp", "quantization_config", "rms_norm_eps", "rope_interleaved", "rope_scaling",
       "rope_theta", "routed_scaling_factor", "router_aux_loss_coef", "scoring_func", "seq_aux", "sliding_window",
       "topk_group", "topk_method", "torch_dtype", "transformers_version", "use_cache", "use_sliding_window"});
  // These would change shapes if they were anything else.
  const auto require = [&](std::string_view key, const auto& value, std::string_view words) {
    if (place.has(key) && place.at(key).value() != value) place.at(key).fail(words);
  };
  require("attention_bias", false, "must be false: only qwen2 has biases here");
  require("mlp_bias", false, "must be false: no model here has such biases");
  require("decoder_sparse_step", 1, "must be 1: every layer is a mixture of experts");
  require("mlp_only_layers", Place::Json::array(), "must be empty: every layer is a mixture of experts");
  require("moe_layer_freq", 1, "must be 1: every layer from first_k_dense_replace on is a mixture of experts");
}

void read_experts(const Place& place, ModelConfig& model) {
  const bool is_latent = model.family == Family::deepseek_v3;
  if (!is_latent && model.family != Family::qwen3_moe) return;
  model.experts = size_at(place, is_latent ? "n_routed_experts" : "num_experts", kMaxExperts / model.num_hidden_layers);
  model.moe_intermediate_size = size_at(place, "moe_intermediate_size");
  if (!is_latent) return;
  model.n_shared_experts = size_or(place, "n_shared_experts", 0, kMaxSharedExperts);
  model.first_k_dense_replace = size_or(place, "first_k_dense_replace", 0);
  model.q_lora_rank = size_or(place, "q_lora_rank", 0);
  model.kv_lora_rank = size_at(place, "kv_lora_rank");
  model.qk_nope_head_dim = size_at(place, "qk_nope_head_dim", kMaxHeadDim);
  model.qk_rope_head_dim = size_at(place, "qk_rope_head_dim", kMaxHeadDim);
  model.v_head_dim = size_at(place, "v_head_dim", kMaxHeadDim);
}

ModelConfig read_model(const Place& place) {
  require_model_keys(place);
  ModelConfig model;
  model.family = family_of(place.at("model_type"));
  model.hidden_size = size_at(place, "hidden_size");
  model.num_hidden_layers = size_at(place, "num_hidden_layers", kMaxLayers);
  model.vocab_size = size_at(place, "vocab_size");
  model.num_attention_heads = size_at(place, "num_attention_heads", kMaxHeads);
  model.num_key_value_heads = size_or(place, "num_key_value_heads", model.num_attention_heads);
  if (model.num_attention_heads % model.num_key_value_heads != 0) {
    place.at("num_key_value_heads")
        .fail(fmt::format("{} does not divide the {} attention heads", model.num_key_value_heads,
                          model.num_attention_heads));
  }
  model.head_dim = size_or(place, "head_dim", model.hidden_size / model.num_attention_heads, kMaxHeadDim);
  if (model.head_dim < 1) place.fail("has no head_dim, and hidden_size / num_attention_heads is 0");
  model.tie_word_embeddings = place.has("tie_word_embeddings") && place.at("tie_word_embeddings").boolean();
  read_experts(place, model);
  if (model.experts == 0 || model.first_k_dense_replace > 0) {
    model.intermediate_size = size_at(place, "intermediate_size");
  }
  return model;
}

// ---- layouts ----

// Layers of each stage: as given, or equally many.
std::vector<std::int64_t> read_stages(const Place& layout, const ModelConfig& model, std::uint32_t stages) {
  const auto layers = model.num_hidden_layers;
  if (!layout.has("layers_per_stage")) {
    if (layers % stages != 0) {
      layout.at("pp").fail(fmt::format(
          "{} stages do not divide {} layers; say which have how many in \"layers_per_stage\"", stages, layers));
    }
    return std::vector<std::int64_t>(stages, layers / stages);
  }
  const auto place = layout.at("layers_per_stage");
  auto given = place.integers(kMaxLayers, 0);
  const auto sum = std::accumulate(given.begin(), given.end(), std::int64_t{0});
  if (given.size() != stages) place.fail(fmt::format("names {} stages, pp is {}", given.size(), stages));
  if (sum != layers) place.fail(fmt::format("adds up to {} layers, the model has {}", sum, layers));
  return given;
}

void require_divides(const Place& layout, std::string_view key, std::int64_t ranks, std::int64_t size,
                     std::string_view what) {
  if (size % ranks == 0) return;
  const auto words = fmt::format("{} ranks do not divide {} {}", ranks, size, what);
  if (layout.has(key)) layout.at(key).fail(words);
  layout.fail(words);
}

void check_tensor_parallel(const Place& layout, const ModelConfig& model, std::uint32_t tp) {
  if (model.intermediate_size > 0) require_divides(layout, "tp", tp, model.intermediate_size, "of intermediate_size");
  if (model.n_shared_experts > 0) {
    require_divides(layout, "tp", tp, model.n_shared_experts * model.moe_intermediate_size, "of the shared experts");
  }
}

void check_experts(const Place& layout, const ModelConfig& model, std::uint32_t ep, std::uint32_t divided,
                   std::string_view divided_by) {
  if (model.experts == 0) {
    if (ep > 1) layout.at("ep").fail("the model has no routed experts");
    return;
  }
  require_divides(layout, "ep", ep, model.experts, "routed experts");
  require_divides(layout, divided_by, divided, model.moe_intermediate_size, "of moe_intermediate_size");
}

void read_order(const Place& place, TrainerLayout& layout) {
  std::array<bool, TrainerLayout::kAxes> seen{};
  std::vector<TrainerLayout::Axis> order;
  for (std::size_t i = 0; i < place.size_of_array(TrainerLayout::kAxes); ++i) {
    const auto item = place.at(i);
    const auto& name = item.text(kMaxNameBytes);
    const auto found = std::find(kAxisNames.begin(), kAxisNames.end(), name);
    if (found == kAxisNames.end()) item.fail(fmt::format("must be one of {}", fmt::join(kAxisNames, ", ")));
    const auto axis = static_cast<TrainerLayout::Axis>(found - kAxisNames.begin());
    if (seen[axis]) item.fail(fmt::format("{} stands twice", name));
    seen[axis] = true;
    order.push_back(axis);
  }
  for (std::size_t axis = 0; axis < TrainerLayout::kAxes; ++axis) {
    if (seen[axis]) continue;
    if (layout.ranks[axis] > 1)
      place.fail(fmt::format("{} of {} ranks is missing", kAxisNames[axis], layout.ranks[axis]));
    order.push_back(static_cast<TrainerLayout::Axis>(axis));
  }
  std::copy(order.begin(), order.end(), layout.order.begin());
}

TrainerLayout read_trainers(const Place& place, const ModelConfig& model) {
  place.require_keys({"pp", "dp", "fsdp", "cp", "ep", "tp", "layers_per_stage", "order", "shard_over_ep"});
  TrainerLayout layout;
  for (std::size_t axis = 0; axis < TrainerLayout::kAxes; ++axis) {
    layout.ranks[axis] = ranks_or_one(place, kAxisNames[axis]);
  }
  if (place.has("order")) read_order(place.at("order"), layout);
  if (place.has("shard_over_ep")) layout.shard_over_ep = place.at("shard_over_ep").boolean();
  layout.layers_per_stage = read_stages(place, model, layout.ranks[TrainerLayout::kPipeline]);
  const auto tp = layout.ranks[TrainerLayout::kTensor];
  check_tensor_parallel(place, model, tp);
  require_divides(place, "tp", tp, model.num_attention_heads, "attention heads");
  if (model.family != Family::deepseek_v3 && model.num_key_value_heads % tp != 0 &&
      tp % model.num_key_value_heads != 0) {
    place.at("tp").fail(
        fmt::format("shards of {} ranks overlap: {} key and value heads are neither a multiple nor a "
                    "divisor of it",
                    tp, model.num_key_value_heads));
  }
  check_experts(place, model, layout.ranks[TrainerLayout::kExpert], tp, "tp");
  return layout;
}

ServerLayout read_server(const Place& place, const ModelConfig& model) {
  place.require_keys({"replicas", "pp", "dp", "tp", "ep", "attention", "layers_per_stage"});
  ServerLayout layout;
  layout.replicas = ranks_or_one(place, "replicas");
  layout.pp = ranks_or_one(place, "pp");
  layout.dp = ranks_or_one(place, "dp");
  layout.tp = ranks_or_one(place, "tp");
  layout.ep = ranks_or_one(place, "ep");
  if (place.has("attention")) {
    const auto attention = place.at("attention");
    const auto& word = attention.text(kMaxNameBytes);
    if (word != "split" && word != "replicated") attention.fail("must be \"split\" or \"replicated\"");
    layout.split_attention = word == "split";
  }
  layout.layers_per_stage = read_stages(place, model, layout.pp);
  check_tensor_parallel(place, model, layout.tp);
  if (layout.split_attention) require_divides(place, "tp", layout.tp, model.num_attention_heads, "attention heads");
  const auto ranks = std::uint64_t{layout.dp} * layout.tp;
  if (ranks > kMaxRanks) place.fail(fmt::format("has more than {} ranks", kMaxRanks));
  if (ranks % layout.ep != 0) {
    place.at("ep").fail(fmt::format("{} does not divide the {} ranks of dp x tp", layout.ep, ranks));
  }
  check_experts(place, model, layout.ep, static_cast<std::uint32_t>(ranks / layout.ep), "ep");
  return layout;
}

// ---- hardware ----

Hardware read_hardware(const Place& place, std::uint64_t ranks) {
  place.require_keys({"nodes", "gpus_per_node", "nics_per_gpu", "nic_gbs", "nvlink_gbs"});
  Hardware hardware;
  hardware.nodes = static_cast<std::uint32_t>(place.at("nodes").integer(1, kMaxRanks));
  hardware.gpus_per_node = static_cast<std::uint32_t>(place.at("gpus_per_node").integer(1, kMaxRanks));
  hardware.nics_per_gpu = ranks_or_one(place, "nics_per_gpu");
  hardware.nic_gbs = place.at("nic_gbs").positive_number();
  if (place.has("nvlink_gbs")) hardware.nvlink_gbs = place.at("nvlink_gbs").positive_number();
  const auto gpus = std::uint64_t{hardware.nodes} * hardware.gpus_per_node;
  if (ranks > kMaxRanks) place.fail(fmt::format("the layout has more than {} ranks", kMaxRanks));
  if (gpus != ranks) place.fail(fmt::format("there are {} GPUs, the layout has {} ranks", gpus, ranks));
  return hardware;
}

template <class Ranks>
std::uint64_t product(const Ranks& ranks) {
  std::uint64_t all = 1;
  for (const std::uint64_t some : ranks) all = std::min<std::uint64_t>(all * some, std::uint64_t{kMaxRanks} + 1);
  return all;
}

Recipe read_recipe(const Place& place) {
  const auto& name = place.text(kMaxNameBytes);
  const auto recipe = parse_recipe(name);
  if (recipe && is_of_values(*recipe)) return *recipe;
  place.fail(
      fmt::format("\"{}\" is no recipe that plans can carry; there are {}", name.substr(0, 100), recipes_of_values()));
}

}  // namespace

bool is_scenario(std::string_view json_text) {
  constexpr std::string_view kAnyVersion = "weightcast.scenario/";
  if (json_text.find(kAnyVersion) == std::string_view::npos)
    return false;  // catalogs may be large: not parsed for this
  const auto document = nlohmann::json::parse(json_text, nullptr, false);
  if (!document.is_object()) return false;
  const auto format = document.find("format");
  return format != document.end() && format->is_string() &&
         format->get_ref<const std::string&>().starts_with(kAnyVersion);
}

Scenario parse_scenario(std::string_view json_text, const std::string& origin) {
  if (json_text.size() > kMaxScenarioBytes) {
    throw Error(Code::invalid_argument,
                fmt::format("{}: {} bytes, at most {} are supported", origin, json_text.size(), kMaxScenarioBytes));
  }
  const auto document = parse_strict_json(json_text, origin);
  const Place root(document, origin);
  root.require_keys({"format", "about", "model", "recipe", "trainers", "servers", "simulation"});
  if (root.at("format").text(kMaxNameBytes) != kScenarioFormat)
    root.at("format").fail(fmt::format("must be \"{}\"", kScenarioFormat));
  Scenario scenario;
  scenario.origin = origin;
  if (root.has("about")) scenario.about = root.at("about").text(kMaxScenarioBytes);
  scenario.model = read_model(root.at("model"));
  scenario.recipe = read_recipe(root.at("recipe"));
  const auto trainers = root.at("trainers");
  trainers.require_keys({"layout", "hardware"});
  scenario.trainers = read_trainers(trainers.at("layout"), scenario.model);
  scenario.trainer_hardware = read_hardware(trainers.at("hardware"), product(scenario.trainers.ranks));
  const auto servers = root.at("servers");
  if (servers.size_of_array(kMaxPools) == 0) servers.fail("must name at least one pool of servers");
  for (std::size_t i = 0; i < servers.value().size(); ++i) {
    const auto pool = servers.at(i);
    pool.require_keys({"layout", "hardware"});
    const auto layout = read_server(pool.at("layout"), scenario.model);
    const auto ranks = product(std::array{layout.replicas, layout.pp, layout.dp, layout.tp});
    scenario.servers.push_back({layout, read_hardware(pool.at("hardware"), ranks)});
  }
  if (root.has("simulation")) scenario.simulation = read_simulation(root.at("simulation"));
  return scenario;
}

}  // namespace weightcast

#include "schedule/model_shapes.h"

#include <fmt/format.h>

#include <map>
#include <tuple>
#include <utility>

namespace weightcast {
namespace {

using Shape = std::vector<std::int64_t>;

class Model {
 public:
  explicit Model(const ModelConfig& config) : config_(config) {}

  std::vector<ModelTensor> tensors() {
    layer_ = -1;
    add("model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size}).division = Division::vocabulary;
    for (layer_ = 0; layer_ < config_.num_hidden_layers; ++layer_) add_layer();
    add("model.norm.weight", {config_.hidden_size});
    if (!config_.tie_word_embeddings) {
      add("lm_head.weight", {config_.vocab_size, config_.hidden_size}).division = Division::vocabulary;
    }
    return std::move(tensors_);
  }

 private:
  ModelTensor& add(std::string name, Shape shape) {
    tensors_.push_back({std::move(name), shapes_.try_emplace(shape, shape).first->second, layer_});
    return tensors_.back();
  }

  void add_projection(std::string name, Shape shape, Division division = Division::none, std::uint8_t axis = 0) {
    auto& tensor = add(std::move(name), std::move(shape));
    tensor.division = division;
    tensor.axis = axis;
    tensor.is_projection = true;
  }

  void add_layer() {
    const auto layer = fmt::format("model.layers.{}.", layer_);
    add(layer + "input_layernorm.weight", {config_.hidden_size});
    if (config_.family == ModelConfig::Family::deepseek_v3) {
      add_latent_attention(layer + "self_attn.");
    } else {
      add_attention(layer + "self_attn.");
    }
    add(layer + "post_attention_layernorm.weight", {config_.hidden_size});
    if (config_.experts > 0 && layer_ >= config_.first_k_dense_replace) {
      add_experts(layer + "mlp.");
    } else {
      add_mlp(layer + "mlp.", config_.intermediate_size);
    }
  }

  void add_attention(const std::string& at) {
    const auto hidden = config_.hidden_size;
    const auto queries = config_.num_attention_heads * config_.head_dim;
    const auto keys = config_.num_key_value_heads * config_.head_dim;
    for (const auto& [name, rows, division] : {std::tuple{"q", queries, Division::heads},
                                               {"k", keys, Division::kv_heads},
                                               {"v", keys, Division::kv_heads}}) {
      add_projection(fmt::format("{}{}_proj.weight", at, name), {rows, hidden}, division);
      if (config_.family != ModelConfig::Family::qwen2) continue;
      add(fmt::format("{}{}_proj.bias", at, name), {rows}).division = division;
    }
    if (config_.family == ModelConfig::Family::qwen3 || config_.family == ModelConfig::Family::qwen3_moe) {
      add(at + "q_norm.weight", {config_.head_dim});
      add(at + "k_norm.weight", {config_.head_dim});
    }
    add_projection(at + "o_proj.weight", {hidden, queries}, Division::heads, 1);
  }

  void add_latent_attention(const std::string& at) {
    const auto hidden = config_.hidden_size;
    const auto heads = config_.num_attention_heads;
    const auto queries = heads * (config_.qk_nope_head_dim + config_.qk_rope_head_dim);
    if (config_.q_lora_rank > 0) {
      add_projection(at + "q_a_proj.weight", {config_.q_lora_rank, hidden});
      add(at + "q_a_layernorm.weight", {config_.q_lora_rank});
      add_projection(at + "q_b_proj.weight", {queries, config_.q_lora_rank}, Division::heads);
    } else {
      add_projection(at + "q_proj.weight", {queries, hidden}, Division::heads);
    }
    add_projection(at + "kv_a_proj_with_mqa.weight", {config_.kv_lora_rank + config_.qk_rope_head_dim, hidden});
    add(at + "kv_a_layernorm.weight", {config_.kv_lora_rank});
    add_projection(at + "kv_b_proj.weight",
                   {heads * (config_.qk_nope_head_dim + config_.v_head_dim), config_.kv_lora_rank}, Division::heads);
    add_projection(at + "o_proj.weight", {hidden, heads * config_.v_head_dim}, Division::heads, 1);
  }

  void add_mlp(const std::string& at, std::int64_t intermediate) {
    add_projection(at + "gate_proj.weight", {intermediate, config_.hidden_size}, Division::mlp);
    add_projection(at + "up_proj.weight", {intermediate, config_.hidden_size}, Division::mlp);
    add_projection(at + "down_proj.weight", {config_.hidden_size, intermediate}, Division::mlp, 1);
  }

  void add_experts(const std::string& at) {
    add(at + "gate.weight", {config_.experts, config_.hidden_size});
    if (config_.family == ModelConfig::Family::deepseek_v3) {
      add(at + "gate.e_score_correction_bias", {config_.experts}).is_fp32 = true;
    }
    for (std::int64_t expert = 0; expert < config_.experts; ++expert) {
      const auto first = tensors_.size();
      add_mlp(fmt::format("{}experts.{}.", at, expert), config_.moe_intermediate_size);
      for (auto i = first; i < tensors_.size(); ++i) tensors_[i].expert = expert;
    }
    if (config_.n_shared_experts > 0) {
      add_mlp(at + "shared_experts.", config_.n_shared_experts * config_.moe_intermediate_size);
    }
  }

  const ModelConfig& config_;
  std::int64_t layer_ = 0;
  std::vector<ModelTensor> tensors_;
  std::map<Shape, SharedList<std::int64_t>> shapes_;  // equal ones share one list
};

}  // namespace

std::vector<ModelTensor> tensors_of(const ModelConfig& config) { return Model(config).tensors(); }

}  // namespace weightcast

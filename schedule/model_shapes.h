// The tensors of a language model, from its published configuration (Hugging Face config.json).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "schedule/shared.h"

namespace weightcast {

// The fields that decide shapes, named as in config.json. 0 where a model has no such thing.
struct ModelConfig {
  enum class Family : std::uint8_t { llama, qwen2, qwen3, qwen3_moe, deepseek_v3 };

  Family family = Family::llama;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t vocab_size = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;
  bool tie_word_embeddings = false;
  // Mixtures of experts. Layers below first_k_dense_replace have one MLP instead.
  std::int64_t experts = 0;  // num_experts or n_routed_experts
  std::int64_t moe_intermediate_size = 0;
  std::int64_t n_shared_experts = 0;
  std::int64_t first_k_dense_replace = 0;
  // deepseek_v3: latent attention.
  std::int64_t q_lora_rank = 0;  // 0: q_proj as in other models
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;
  std::int64_t v_head_dim = 0;
};

// What tensor parallelism divides along an axis of a tensor.
enum class Division : std::uint8_t {
  none = 0,        // every rank has all of it
  heads = 1,       // each rank an equal number of query heads
  kv_heads = 2,    // each rank the key and value heads that its query heads use, so some may be on several ranks
  mlp = 3,         // equal parts of an intermediate size
  vocabulary = 4,  // chunks of ceil(size / ranks), the last ones short
};

struct ModelTensor {
  SharedText name;
  SharedList<std::int64_t> shape;
  std::int64_t layer = 0;                   // -1: before the first; num_hidden_layers: after the last
  std::optional<std::int64_t> expert = {};  // a routed expert's
  Division division = Division::none;       // of tensor parallelism
  std::uint8_t axis = 0;                    // that it divides
  bool is_projection = false;               // a matrix that servers may take quantised
  bool is_fp32 = false;                     // else BF16
};

// In the order of the layers. The layers of multi-token prediction are no part of the model that serves.
[[nodiscard]] std::vector<ModelTensor> tensors_of(const ModelConfig& config);

}  // namespace weightcast

"""Tiny random checkpoints of many architectures, made by transformers: two of each, A and B, with different weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

_COMMON = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_DEEP = {"num_hidden_layers": 7}  # enough that layers which are alike are mapped by some of them
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1, "mlp_only_layers": []}
MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", _DEEP),
    "llama_one_kv_head": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama_tied_padded": ("LlamaConfig", {"tie_word_embeddings": True, "vocab_size": 301}),
    "qwen2": ("Qwen2Config", _DEEP),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 32, **_EXPERTS}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, **_DEEP}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "original_max_position_embeddings": 512}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, **_DEEP}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 5, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXConfig", _DEEP),
    "deepseek_v2": ("DeepseekV2Config", {"q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
                                         "v_head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
                                         "moe_intermediate_size": 32, "first_k_dense_replace": 1, "topk_method": "greedy",
                                         "n_group": 1, "topk_group": 1, "num_key_value_heads": 4, **_DEEP}),
}  # fmt: skip


def make(name: str, folder: Path, seed: int) -> Path:
    """Writes checkpoint `name` with the weights that `seed` gives into `folder`; the folder."""
    import transformers

    kind, changes = MODELS[name]
    common = _COMMON if name != "gpt2" else {key: _COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, kind)(**(common | changes))
    config.torch_dtype = torch.bfloat16
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.05 + (1.0 if parameter.dim() == 1 else 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        for letter, seed in (("a", 1), ("b", 2)):
            make(name, out / name / letter, seed)
    print(json.dumps({"made": len(sys.argv[2:] or MODELS)}))

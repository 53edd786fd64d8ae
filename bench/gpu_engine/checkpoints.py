"""checkpoints.py FOLDER [--fp8]: small random Qwen3 and Qwen3-MoE, each as A and B, for engines of vLLM.

FOLDER/MODEL/a and /b are what an engine loads; FOLDER/MODEL/a.safetensors and b.safetensors are what a trainer holds, in BF16.
With --fp8 the engine's are quantised in blocks of 128x128 by torch on the CPU, which shares no code with the transfer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCK = 128
MODELS = ("qwen3", "qwen3_moe")
BASE = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512, "decoder_sparse_step": 1, "mlp_only_layers": [],
           "norm_topk_prob": True}  # fmt: skip


def config_of(model: str, fp8: bool) -> dict:
    names = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
    config = BASE | {"model_type": model, "architectures": [names[model]]} | (EXPERTS if model == "qwen3_moe" else {})
    if fp8:
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
                                         "modules_to_not_convert": ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(4))]}  # fmt: skip
    return config


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    hidden, head, heads, groups = BASE["hidden_size"], BASE["head_dim"], BASE["num_attention_heads"], BASE["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (BASE["vocab_size"], hidden), "lm_head.weight": (BASE["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(BASE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        rows = {"q_proj": heads * head, "k_proj": groups * head, "v_proj": groups * head}
        shapes |= {f"{prefix}.self_attn.{name}.weight": (n, hidden) for name, n in rows.items()}
        shapes |= {f"{prefix}.self_attn.o_proj.weight": (hidden, heads * head)}
        shapes |= {f"{prefix}.self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")}
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        if model == "qwen3":
            shapes |= mlp(f"{prefix}.mlp", hidden, BASE["intermediate_size"])
        else:
            shapes[f"{prefix}.mlp.gate.weight"] = (EXPERTS["num_experts"], hidden)
            for expert in range(EXPERTS["num_experts"]):
                shapes |= mlp(f"{prefix}.mlp.experts.{expert}", hidden, EXPERTS["moe_intermediate_size"])
    return shapes


def mlp(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.gate_proj.weight": (inner, hidden), f"{prefix}.up_proj.weight": (inner, hidden), f"{prefix}.down_proj.weight": (hidden, inner)}


def weights_of(model: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes_of(model).items()}
    return {name: (1 + 0.1 * values if values.dim() == 1 else 0.05 * values).to(torch.bfloat16) for name, values in made.items()}


def quantised(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """scale = amax / 448 of each block, code = value / scale, as the recipe fp8_e4m3_128x128_fp32 says it."""
    if "_proj" not in name:
        return {name: values}
    rows, columns = (extent // BLOCK for extent in values.shape)  # all are multiples
    blocks = values.float().view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(1e-10) * (torch.ones(()) / torch.tensor(448.0))
    codes = (blocks * (torch.ones(()) / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {name: codes.view(values.shape), f"{name}_scale_inv": scale.view(rows, columns)}


def main() -> None:
    out, fp8 = Path(sys.argv[1]), "--fp8" in sys.argv
    for model in MODELS:
        for letter, seed in (("a", 1), ("b", 2)):
            folder = out / model / letter
            folder.mkdir(parents=True)
            weights = weights_of(model, seed)
            save_file(weights, f"{folder}.safetensors")
            loaded = {k: v for name, values in weights.items() for k, v in (quantised(name, values) if fp8 else {name: values}).items()}
            save_file(loaded, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config_of(model, fp8)))


main()

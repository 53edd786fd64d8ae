"""large_structure.py STORE FOLDER [all]: vLLM's model of Qwen3-235B-A22B's structure on the meta device, traced; with `all`,
every layer by itself too. Prints one JSON object.

FOLDER gets config.json and manifest.json (names, shapes and types of the checkpoint).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")
import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models import registry
from weightcast.engines import layers
from weightcast.engines.manifest import manifest_of
from weightcast.engines.trace import trace
from weightcast.vllm import engine, register, reload

HIDDEN, EXPERT, LAYERS, EXPERTS, HEADS, KV_HEADS, HEAD, VOCABULARY = 4096, 1536, 94, 128, 64, 4, 128, 151936
CONFIG = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": EXPERT,
          "intermediate_size": 12288, "num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": 8,
          "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "vocab_size": VOCABULARY, "hidden_act": "silu",
          "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "norm_topk_prob": True,
          "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16", "attention_bias": False}  # fmt: skip


def checkpoint() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.input_layernorm.weight": (HIDDEN,), f"{name}.post_attention_layernorm.weight": (HIDDEN,),
                   f"{name}.self_attn.q_norm.weight": (HEAD,), f"{name}.self_attn.k_norm.weight": (HEAD,),
                   f"{name}.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN), f"{name}.self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
                   f"{name}.self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN), f"{name}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
                   f"{name}.mlp.gate.weight": (EXPERTS, HIDDEN)}  # fmt: skip
        for expert in range(EXPERTS):
            for part, shape in (("gate", (EXPERT, HIDDEN)), ("up", (EXPERT, HIDDEN)), ("down", (HIDDEN, EXPERT))):
                shapes[f"{name}.mlp.experts.{expert}.{part}_proj.weight"] = shape
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def main() -> None:
    store, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    registry._run_in_subprocess = lambda look: look()  # 20 s of importing
    register()
    shapes = checkpoint()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "manifest.json").write_text(json.dumps({name: {"shape": shape, "dtype": "bfloat16"} for name, shape in shapes.items()}))
    config = EngineArgs(model=str(folder), dtype="bfloat16", enforce_eager=True, skip_tokenizer_init=True, max_model_len=128).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1)
        with torch.device("meta"):
            model = initialize_model(vllm_config=config)
    used = time.process_time()
    layout, seconds = engine.trace_model(model, str(folder / "manifest.json"))
    used = time.process_time() - used
    same = None
    if "all" in sys.argv:
        manifest = manifest_of(folder / "manifest.json")
        with reload.as_loaded(model) as loaded:
            same = trace(model.load_weights, manifest, loaded) == layers.trace_model(model, manifest, loaded)
    print(json.dumps({"tensors": len(shapes), "slices": len(layout.entries), "parameters": len(layout.landings), "unused": layout.unused,
                      "seconds": seconds, "cpu_seconds": used, "same": same}))  # fmt: skip


main()

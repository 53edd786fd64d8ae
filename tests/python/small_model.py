"""A model with the shapes that matter (ragged blocks, fused projections), small enough for a test."""

import ml_dtypes
import numpy as np

HIDDEN, KV, INTERMEDIATE, VOCABULARY = 192, 64, 512, 40

SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(2)
        for name, shape in {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KV, HIDDEN),
            "self_attn.v_proj": (KV, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }.items()
    },
}


def checkpoint(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape, np.float32) * 0.05).astype(ml_dtypes.bfloat16)
        for name, shape in SHAPES.items()
    }


def expected_of(tensors: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """What the oracle says server `rank` holds."""
    from weightcast.demo import oracle

    cast = {name: oracle.cast_fp8(values) for name, values in tensors.items() if oracle.is_cast(name)}
    return dict(oracle.server_parameters(tensors, cast, rank))

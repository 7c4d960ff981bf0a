"""The layer convention, the truncated view and the head, for every supported architecture."""

import shutil
from pathlib import Path

import pytest
import torch

from nla.errors import ConfigError, ModelError
from nla.models import backbone
from nla.models import lora as adapters
from nla.models.pair import NLA
from nla.models.prompts import Templates

TOKENS = torch.randint(5, 300, (2, 14), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(family_folder: str):
    return backbone.load_model(family_folder)


@pytest.mark.parametrize("layer", [0, 1])
def test_output_of_block_l_is_hidden_state_l_plus_one(model, layer: int):
    expected = model(TOKENS, output_hidden_states=True).hidden_states[layer + 1]
    view = backbone.truncated(backbone.body(model), layer)
    got = view(inputs_embeds=backbone.embed(backbone.body(model), TOKENS), use_cache=False).last_hidden_state
    assert torch.equal(got, expected)


def test_last_block_is_read_before_the_final_norm(model):
    decoder = backbone.body(model)
    caught = []
    handle = backbone.blocks(decoder)[-1].register_forward_hook(
        lambda _m, _i, out: caught.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    normed = model(TOKENS, output_hidden_states=True).hidden_states[-1]
    handle.remove()
    got = backbone.truncated(decoder, 2)(inputs_embeds=backbone.embed(decoder, TOKENS)).last_hidden_state
    assert torch.equal(got, caught[0])
    assert not torch.allclose(got, normed)


def test_view_shares_parameters_and_leaves_the_original_intact(model):
    decoder = backbone.body(model)
    before = model(TOKENS).logits
    view = backbone.truncated(decoder, 0)
    assert len(backbone.blocks(view)) == 1
    assert len(backbone.blocks(decoder)) == 3
    assert {id(p) for p in view.parameters()} < {id(p) for p in decoder.parameters()}
    assert view.config.num_hidden_layers == 1
    assert decoder.config.num_hidden_layers == 3
    assert torch.equal(model(TOKENS).logits, before)


def test_head_gives_the_models_own_logits(model):
    hidden = backbone.body(model)(input_ids=TOKENS).last_hidden_state
    assert torch.allclose(backbone.head_logits(model, hidden), model(TOKENS).logits, atol=1e-6)


def test_input_gain_is_one_where_the_embedding_module_scales(model):
    assert backbone.input_gain(backbone.body(model)) == 1.0


def test_input_gain_where_the_body_scales():
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, embedding_multiplier=12.0, logits_scaling=4.0,
    )  # fmt: skip
    model = GraniteForCausalLM(config).eval()
    assert backbone.input_gain(backbone.body(model)) == pytest.approx(12.0)
    tokens = TOKENS % 64
    hidden = backbone.body(model)(input_ids=tokens).last_hidden_state
    assert torch.allclose(backbone.head_logits(model, hidden), model(tokens).logits, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, 3, 99])
def test_wrong_layer_names_the_range(tiny_folder: str, layer: int):
    with pytest.raises(ConfigError, match=rf"layer.index={layer}.*0 to 2"):
        backbone.check_layer(backbone.load_model(tiny_folder), layer)


def test_missing_model_and_unknown_dtype_are_one_line(tmp_path: Path, tiny_folder: str):
    with pytest.raises(ModelError, match="give a packaged id") as caught:
        backbone.load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="float32"):
        backbone.load_model(tiny_folder, dtype="fp8")


def test_pickled_weights_are_refused(tmp_path: Path, tiny_folder: str):
    model = backbone.load_model(tiny_folder)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        backbone.load_model(str(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path, tiny_folder: str):
    model = backbone.load_model(tiny_folder)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ModelError, match="incomplete"):
        backbone.load_model(str(tmp_path))


def test_resolve_leaves_paths_and_hub_ids_alone(tmp_path: Path):
    assert backbone.resolve("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert backbone.resolve(tmp_path) == tmp_path
    assert backbone.resolve("../errors") == "../errors"


def test_lora_covers_all_linear_layers_and_merges(model, family_folder: str):
    adapted = backbone.load_model(family_folder)
    adapters.add_lora(adapted, rank=2, alpha=4)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)
    assert torch.equal(adapted(TOKENS).logits, model(TOKENS).logits)  # B starts at zero
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = backbone.load_model(family_folder)
    plain.load_state_dict(adapters.merged_state_dict(adapted))
    assert torch.allclose(plain(TOKENS).logits, adapted(TOKENS).logits, atol=1e-4)
    assert not torch.allclose(plain(TOKENS).logits, model(TOKENS).logits, atol=1e-2)


def test_a_packaged_id_stays_an_id(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, templates: Templates
):
    shutil.copytree(tiny_folder, tmp_path / "packaged" / "small")
    monkeypatch.setattr(backbone, "PACKAGED", tmp_path / "packaged")
    assert backbone.resolve("small") == tmp_path / "packaged" / "small"
    nla = NLA.from_target("small", 1, templates)
    nla.save_pretrained(tmp_path / "nla")
    assert NLA.from_pretrained(tmp_path / "nla").base_model == "small"
    written = [p for p in (tmp_path / "nla").rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert written
    assert not any("packaged" in path.read_text() for path in written)

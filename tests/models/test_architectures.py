"""The matrix: what must hold for every supported architecture, at small size, from saved folders of the real classes.

Faults 21 (padding), 22 (the layer read), 26 (cached decoding), 28 (saved and loaded), 29 (embedding scale, wrapper).
More detailed tests of the same features, for one family, are with their modules.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import FAMILIES, MARKER, TEMPLATES, sampling_params, seen_by_first_block

from nla.core.objectives import normalize
from nla.models import backbone
from nla.models.pair import NLA
from nla.models.reconstructor import Reconstructor
from nla.models.target import Target

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Tom", "Tom walks to the harbour."]
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
WIDTH = 32


def vectors(count: int = 3) -> torch.Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def shaken(nla: NLA) -> NLA:
    """As after some training: every trainable weight is slightly changed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in nla.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return nla


def numbers(nla: NLA) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = nla.verbalizer.respond(TEXTS)
    return nla.verbalizer(vectors(), tokens, mask).detach(), nla.reconstruct(TEXTS)


def blocks_output(model: Any, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """What a hook on block `layer` of the whole model sees, of one unpadded row."""
    caught: list[torch.Tensor] = []
    handle = backbone.blocks(backbone.body(model))[layer].register_forward_hook(
        lambda _m, _i, out: caught.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return caught[0][0]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, model_folders: dict[str, str]) -> str:
    return model_folders[request.param]


@pytest.fixture(scope="module")
def pair(folder: str) -> NLA:
    return NLA.from_target(folder, 1, TEMPLATES, MARKER, 10.0)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_the_activation_is_the_output_of_block_l(folder: str, padding: str):
    """Faults 21 and 22: on any padding side, and without a padding token, as the unpadded forward of each text."""
    target = Target.from_pretrained(folder, 0)
    if padding == "none":
        target.tokenizer.pad_token = None
    else:
        target.tokenizer.padding_side = padding
    for layer in (0, 1, 2):
        target.layer = layer
        reading = target.read(TEXTS, "all")
        for index, text in enumerate(TEXTS):
            expected = blocks_output(target.model, layer, target.tokenizer(text, return_tensors="pt")["input_ids"])
            rows = [row for row, document in enumerate(reading.document) if document == index]
            vector = reading.activation[rows]
            assert torch.allclose(vector, expected[[reading.position[row] for row in rows]], atol=1e-5)


def test_the_injected_row_reaches_block_zero_at_its_own_norm(pair: NLA):
    """Fault 29: if the embedding scales by sqrt(d) (Gemma), the vector is inserted after that scaling."""
    verbalizer, activation = pair.verbalizer, vectors()
    tokens, mask = verbalizer.respond(TEXTS)
    alone = [slice(row, row + 1) for row in range(len(tokens))]  # each in a row of its own
    seen = torch.cat([seen_by_first_block(verbalizer, activation[row], tokens[row], mask[row]) for row in alone])
    place, ids = verbalizer.prompt.position, torch.tensor(verbalizer.prompt.tokens)
    ordinary = backbone.embed(backbone.body(verbalizer.model), ids)
    injected = normalize(activation, 10.0)
    if hasattr(verbalizer.model, "transformer"):  # GPT-2 adds its position embeddings to any input
        added = verbalizer.model.transformer.wpe.weight
        ordinary, injected = ordinary + added[: len(ids)], injected + added[place]
    others = [index for index in range(len(ids)) if index != place]
    assert torch.allclose(seen[:, place], injected, atol=1e-5)
    assert torch.allclose(seen[:, others], ordinary[others].expand(3, -1, -1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_reconstructor_starts_as_the_output_of_block_l(folder: str, side: str):
    """Faults 21 and 22: identity head, no final norm, the residual stream at the prompt's last token."""
    reconstructor = Reconstructor.from_target(folder, 1, TEMPLATES.reconstructor)
    reconstructor.tokenizer.padding_side = side
    model, tokenizer = backbone.load_model(folder), backbone.load_tokenizer(folder)
    texts = [*TEXTS, ""]
    for text, vector in zip(texts, reconstructor.reconstruct(texts), strict=True):
        ids = tokenizer(TEMPLATES.reconstructor.replace("{explanation}", text), return_tensors="pt")["input_ids"]
        assert torch.allclose(vector, blocks_output(model, 1, ids)[-1], atol=1e-5)


def test_the_engine_equals_generate_and_teacher_forcing(pair: NLA):
    """Fault 26: prompt and answer cross the windows of 8 tokens; each row's injection is kept in cached decoding."""
    verbalizer = pair.verbalizer
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be sampled by the engine.*")
        ours = verbalizer.sample(vectors(), sampling_params(2, max_new_tokens=16, temperature=0))
    reference = verbalizer.sample(vectors(), sampling_params(2, max_new_tokens=16, temperature=0, backend="hf"))
    assert torch.equal(ours.tokens, reference.tokens)
    assert torch.equal(ours.mask, reference.mask)
    forced = verbalizer(vectors().repeat_interleave(2, 0), ours.tokens, ours.mask)
    for log_probs in (reference.log_probs, forced):
        assert torch.allclose(ours.log_probs, log_probs, atol=1e-4)


def test_all_weights_are_trained_saved_and_loaded(folder: str, tmp_path: Path):
    """Fault 28."""
    nla = NLA.from_target(folder, 1, TEMPLATES, MARKER, 150.0, None)
    assert all(parameter.requires_grad for parameter in nla.parameters())
    shaken(nla).save_pretrained(tmp_path / "nla", stage="joint")
    back = NLA.from_pretrained(tmp_path / "nla")
    for one, other in zip(numbers(nla), numbers(back), strict=True):
        assert torch.equal(one, other)
    assert nla.explain(vectors(), 2, max_new_tokens=10) == back.explain(vectors(), 2, max_new_tokens=10)
    for name in ("base_model", "layer", "injection_scale", "mse_scale", "templates", "stage"):
        assert getattr(back, name) == (getattr(nla, name) if name != "stage" else "joint")
    assert back.verbalizer.prompt == nla.verbalizer.prompt
    config = json.loads((tmp_path / "nla" / "reconstructor" / "config.json").read_text())
    assert config.get("num_hidden_layers", config.get("n_layer")) == 2
    assert config["architectures"] == json.loads((tmp_path / "nla/verbalizer/config.json").read_text())["architectures"]


def test_adapters_on_one_shared_base_are_trained_saved_merged_and_continued(folder: str, tmp_path: Path):
    """Target, verbalizer, reference and reconstructor share one copy of the weights; none disturbs another."""
    target = Target.from_pretrained(folder, 1)
    nla = NLA.from_target(folder, 1, TEMPLATES, MARKER, adapter=LORA, base=target.model)
    pointers = {parameter.data_ptr() for parameter in target.model.parameters()}
    trained = {name for name, parameter in nla.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name == "reconstructor.head.weight" for name in trained)
    assert {p.data_ptr() for n, p in nla.named_parameters() if n not in trained} <= pointers
    before = target.read(TEXTS, "all").activation
    alone = shaken(NLA.from_target(folder, 1, TEMPLATES, MARKER, adapter=LORA))
    nla.load_state_dict(alone.state_dict())
    nla.verbalizer.sample(vectors(), sampling_params(max_new_tokens=4))
    assert torch.equal(target.read(TEXTS, "all").activation, before)
    for one, other in zip(numbers(nla), numbers(alone), strict=True):
        assert torch.equal(one, other)

    nla.save_pretrained(tmp_path / "nla")
    merged = NLA.from_pretrained(tmp_path / "nla")
    assert not any("lora" in name for name in merged.state_dict())
    for one, other in zip(numbers(nla), numbers(merged), strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    continued = NLA.from_pretrained(tmp_path / "nla", adapter=LORA, base=target.model)
    assert {p.data_ptr() for n, p in continued.named_parameters() if n not in trained} <= pointers
    for name, value in nla.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_a_wrappers_vision_encoder_is_not_kept(model_folders: dict[str, str]):
    """Fault 29: only the language model of Gemma 3 with images is loaded, adapted and saved."""
    model = backbone.load_model(model_folders["gemma3_images"])
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert not any("vision" in name or "projector" in name for name, _ in model.named_parameters())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    text = backbone.load_model(model_folders["gemma3"])
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in text.named_parameters()}


def test_experts_and_router_are_adapted(model_folders: dict[str, str]):
    nla = NLA.from_target(model_folders["qwen3_moe"], 1, TEMPLATES, MARKER, adapter=LORA)
    adapted = {name for name, parameter in nla.verbalizer.named_parameters() if parameter.requires_grad}
    for part in ("self_attn.q_proj", "mlp.experts.base_layer", "mlp.experts.lora_A", "mlp.gate"):
        assert any(part in name for name in adapted), part

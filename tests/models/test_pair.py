"""The pair as a notebook uses it, and its round trip through the released format."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import ROOT
from support.models import MARKER, TEMPLATES
from support.pairs import LORA, TEXTS, numbers, shaken, vectors

from nla.config.check import check_pair
from nla.core.objectives import normalize
from nla.errors import ConfigError, DataError, InjectionError, ModelError, ReleaseError
from nla.models import backbone
from nla.models.pair import NLA
from nla.models.target import Target


def test_halves_load_by_name(saved_nla: Path, nla: NLA):
    back = NLA.from_pretrained(verbalizer=saved_nla / "verbalizer", reconstructor=saved_nla / "reconstructor")
    assert torch.equal(numbers(back)[1], numbers(nla)[1])
    with pytest.raises(ReleaseError, match="either one folder"):
        NLA.from_pretrained(verbalizer=saved_nla / "verbalizer")
    with pytest.raises(ReleaseError, match="in this order"):
        NLA.from_pretrained(verbalizer=saved_nla / "reconstructor", reconstructor=saved_nla / "verbalizer")


def test_a_saved_adapter_of_another_strength_is_refused(tiny_folder: str, tmp_path: Path):
    target = Target.from_pretrained(tiny_folder, 1)
    nla = NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA, base=target.model)
    nla.save_pretrained(tmp_path / "nla")
    with pytest.raises(ReleaseError, match="rank 2 and alpha 4"):
        NLA.from_pretrained(tmp_path / "nla", adapter=LORA | {"alpha": 8.0}, base=target.model)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_an_adapter_loads_with_peft(family: str, model_folders: dict[str, str], tmp_path: Path):
    """In PEFT's own format, on the base model that its config names."""
    nla = shaken(NLA.from_target(model_folders[family], 1, TEMPLATES, MARKER, adapter=LORA))
    nla.save_pretrained(tmp_path / "nla")
    model = PeftModel.from_pretrained(
        backbone.load_model(model_folders[family]), str(tmp_path / "nla/verbalizer/adapter")
    )
    tokens = torch.randint(5, 300, (2, 9))
    assert torch.allclose(model(tokens).logits, nla.verbalizer.model(tokens).logits, atol=1e-5)


def test_adapters_saved_alone_load_with_the_base_model(tiny_folder: str, tmp_path: Path):
    """In bfloat16, without weights or tokenizer; with the target's model shared, or the base model loaded for it."""
    target = Target.from_pretrained(tiny_folder, 1)
    nla = shaken(NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA, base=target.model))
    for half in (nla.verbalizer.model, nla.reconstructor.body):
        for name, weight in half.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.to(torch.bfloat16).float()
    nla.save_adapters(tmp_path / "nla")
    files = {path.name for path in (tmp_path / "nla").rglob("*") if path.is_file()}
    assert files <= {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "nla_meta.yaml", "value_head.safetensors"
    }  # fmt: skip
    for options in ({}, {"adapter": "saved", "base": Target.from_pretrained(tiny_folder, 1).model}):
        back = NLA.from_pretrained(tmp_path / "nla", **options)
        for mine, theirs in zip(numbers(back), numbers(nla), strict=True):
            assert torch.equal(mine, theirs)


def test_a_pair_with_weights_of_its_own_has_no_adapters_to_save(nla: NLA, tmp_path: Path):
    with pytest.raises(ConfigError, match="weights of its own"):
        nla.save_adapters(tmp_path / "nla")


def test_a_packaged_pair_has_a_name(tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = Target.from_pretrained(tiny_folder, 1)
    nla = shaken(NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA, base=target.model))
    nla.save_adapters(tmp_path / "small")
    monkeypatch.setattr("nla.models.pretrained.hub.PAIRS", tmp_path)
    assert NLA.from_pretrained("small").layer == 1 and Target.of_pair("small").layer == 1
    check_pair("small")


def test_saving_twice_replaces(nla: NLA, tmp_path: Path):
    nla.save_pretrained(tmp_path / "nla")
    shaken(nla).save_pretrained(tmp_path / "nla")
    assert torch.equal(numbers(NLA.from_pretrained(tmp_path / "nla"))[0], numbers(nla)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["nla"]


def test_best_of_takes_the_text_that_reconstructs_best(nla: NLA, monkeypatch: pytest.MonkeyPatch):
    candidates = [["a", None, "It rains.", "Tom walks."], [None, None, "b", None]]
    plain = nla.explain
    monkeypatch.setattr(nla, "explain", lambda h, n, *a, **k: candidates if n == 4 else plain(h, n, *a, **k))
    activation = nla.reconstruct(["It rains.", "b"])
    assert NLA.explain(nla, activation, samples=1, best_of=4) == [["It rains."], ["b"]]
    assert NLA.explain(nla, activation, samples=2, best_of=2) == [["a", "It rains."], [None, "b"]]


def test_explain_has_one_list_per_activation(nla: NLA):
    texts = nla.explain(vectors(5), samples=3, max_new_tokens=6)
    assert [len(row) for row in texts] == [3] * 5
    assert nla.explain(vectors(5), samples=3, max_new_tokens=6, batch_size=2) == texts


def test_explanations_come_from_the_tags(nla: NLA, monkeypatch: pytest.MonkeyPatch):
    tokens, mask = nla.verbalizer.respond(TEXTS[:2])
    tokens[1] = 7
    answers = (tokens, mask, torch.zeros(tokens.shape))
    monkeypatch.setattr("nla.models.sampling.engine.sample", lambda *_a, **_k: answers)
    assert nla.explain(vectors(2)) == [[TEXTS[0]], [None]]


def test_score(nla: NLA):
    prediction = nla.reconstruct(TEXTS)
    score = nla.score(5 * prediction, TEXTS)
    assert torch.allclose(score.error, torch.zeros(3), atol=1e-5)
    assert torch.allclose(score.cosine, torch.ones(3), atol=1e-5)
    other = nla.score(vectors(3), [TEXTS[0], None, TEXTS[2]])
    assert other.error[1].item() == pytest.approx(2.0, abs=1e-5)
    assert other.cosine[1].item() == 0.0
    assert torch.allclose(other.error, 2 * (1 - other.cosine), atol=1e-5)
    with pytest.raises(DataError, match="2 texts for 3"):
        nla.score(vectors(3), TEXTS[:2])


def test_halves_start_as_copies_that_share_nothing(nla: NLA):
    left = {p.data_ptr() for p in nla.verbalizer.parameters()}
    assert not left & {p.data_ptr() for p in nla.reconstructor.parameters()}
    first = dict(nla.verbalizer.model.model.named_parameters())
    assert all(torch.equal(first[name], p) for name, p in nla.reconstructor.body.named_parameters())


def test_scales_by_name_and_number(tiny_folder: str):
    nla = NLA.from_target(tiny_folder, 0, TEMPLATES, None, "sqrt_d_model", "sqrt_d_model")
    assert nla.injection_scale == nla.mse_scale == pytest.approx(32**0.5)
    assert nla.verbalizer.prompt.marker == MARKER  # found
    row = nla.verbalizer.prompt_embeddings(vectors(1))[:, nla.verbalizer.prompt.position]
    assert torch.allclose(row, normalize(vectors(1), 32**0.5))


def test_wrong_model_or_marker(tiny_folder: str, tmp_path: Path):
    with pytest.raises(ModelError):
        NLA.from_target(str(tmp_path / "nothing"), 1, TEMPLATES, MARKER)
    with pytest.raises(InjectionError, match="not one token"):
        NLA.from_target(tiny_folder, 1, TEMPLATES, "\u33ff")


def test_modules_start_in_evaluation_mode(nla: NLA):
    assert not any(module.training for module in nla.modules())


def test_usable_without_lightning_and_hydra():
    code = (
        "import sys; import nla; assert 'torch' not in sys.modules; nla.NLA; nla.Target; "
        "bad = {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

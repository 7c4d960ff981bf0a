"""The released format: what is written, and every way in which reading it is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.models import MARKER, TEMPLATES, sampling_params

from nla.errors import NLAError, ReleaseError
from nla.models.pair import NLA
from nla.models.pretrained import hub
from nla.models.pretrained.metadata import read_metadata


def edit(folder: Path, change) -> None:
    path = folder / "nla_meta.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, allow_unicode=True))


def test_layout_as_released(saved_nla: Path):
    reconstructor = saved_nla / "reconstructor"
    config = json.loads((reconstructor / "config.json").read_text())
    assert config["num_hidden_layers"] == 2  # layer 1
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    weights = load_file(reconstructor / "model.safetensors")
    assert {name.split(".")[2] for name in weights if ".layers." in name} == {"0", "1"}
    assert not any("lm_head" in name or name == "model.norm.weight" for name in weights)
    head = load_file(reconstructor / "value_head.safetensors")
    assert set(head) == {"weight"}
    assert head["weight"].shape == (32, 32)
    for half in ("verbalizer", "reconstructor"):
        assert (saved_nla / half / "tokenizer.json").is_file()
        assert not list((saved_nla / half).glob("*.bin"))


def test_a_folder_that_we_wrote_gives_the_same_numbers_in_a_fresh_process(nla: NLA, tmp_path: Path):
    """Every bit of a reconstruction and every sampled token, from weights that no seed reproduces."""
    with torch.no_grad():
        for parameter in nla.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    nla.save_pretrained(tmp_path / "nla")
    vectors = 40 * torch.randn(3, nla.d_model, generator=torch.Generator().manual_seed(0))
    save_file({"vectors": vectors}, tmp_path / "vectors.safetensors")
    code = (
        "import json; from safetensors.torch import load_file; from nla.models.pair import NLA\n"
        "from nla.models.sampling import SamplingParams\n"
        "nla = NLA.from_pretrained('nla'); vectors = load_file('vectors.safetensors')['vectors']\n"
        "from nla.models.sampling import SamplingParams\n"
        "said = nla.verbalizer.sample(vectors, SamplingParams.policy(8, group_size=2), seed=3).tokens.tolist()\n"
        "print(json.dumps([said, nla.reconstruct(['It rains.', 'A dog']).tolist()]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tokens, reconstructions = json.loads(done.stdout)
    assert tokens == nla.verbalizer.sample(vectors, sampling_params(2, max_new_tokens=8), seed=3).tokens.tolist()
    assert torch.equal(torch.tensor(reconstructions), nla.reconstruct(["It rains.", "A dog"]))


def test_metadata_as_released(saved_nla: Path, nla: NLA, tiny_folder: str):
    content = yaml.safe_load((saved_nla / "verbalizer" / "nla_meta.yaml").read_text())
    prompt = nla.verbalizer.prompt
    assert content["kind"] == "nla_model"
    assert content["role"] == "av"
    assert content["base_checkpoint"] == tiny_folder
    assert content["d_model"] == 32
    assert content["extraction_layer_index"] == 1
    assert content["extraction"] == {"injection_scale": 32**0.5, "mse_scale": 32**0.5}
    assert content["prompt_templates"] == {"av": TEMPLATES.verbalizer, "ar": TEMPLATES.reconstructor}
    assert content["tokens"] == {
        "injection_char": MARKER,
        "injection_token_id": prompt.marker_id,
        "injection_left_neighbor_id": prompt.left_id,
        "injection_right_neighbor_id": prompt.right_id,
        "critic_suffix_ids": nla.reconstructor.suffix_ids,
    }
    other = yaml.safe_load((saved_nla / "reconstructor" / "nla_meta.yaml").read_text())
    assert other["role"] == "ar"
    assert other["critic"] == {"extraction_layer_index": 1}  # the name that the released critic reads


def test_no_path_of_this_machine_is_written(nla: NLA, tmp_path: Path, tiny_folder: str):
    nla.base_model = "world"
    nla.save_pretrained(tmp_path / "nla")
    for path in (tmp_path / "nla").rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert tiny_folder not in path.read_text(), path
            assert str(Path.cwd()) not in path.read_text(), path


def test_verbalizer_is_a_plain_hugging_face_model(saved_nla: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(saved_nla / "verbalizer")
    tokenizer = AutoTokenizer.from_pretrained(saved_nla / "verbalizer")
    assert tokenizer.chat_template
    assert model(tokenizer("a", return_tensors="pt")["input_ids"]).logits.shape[-1] == 320


@pytest.mark.parametrize(
    ("section", "key"),
    [("critic", "extraction_layer_index"), ("critic", "num_hidden_layers"), ("ar", "num_hidden_layers")],
)
def test_older_spelling_is_read(section: str, key: str, saved_nla: Path, nla: NLA):
    def older(role: str):
        def change(content: dict) -> None:
            content["role"] = role
            templates = content["prompt_templates"]
            content["prompt_templates"] = {"actor": templates["av"], "critic": templates["ar"]}
            layer = content.pop("extraction_layer_index")
            content.pop("critic", None)
            content[section] = {key: layer}  # all mean the layer l, not the number of blocks

        return change

    edit(saved_nla / "verbalizer", older("actor"))
    edit(saved_nla / "reconstructor", older("critic"))
    back = NLA.from_pretrained(saved_nla)
    assert back.layer == 1
    assert back.templates == TEMPLATES
    assert torch.equal(back.reconstruct(["a"]), nla.reconstruct(["a"]))


@pytest.mark.parametrize(("written", "read"), [(None, None), ("sqrt_d_model", 32**0.5), (7, 7.0), ("absent", 32**0.5)])
def test_spellings_of_mse_scale(saved_nla: Path, written, read):
    def change(content: dict) -> None:
        content["extraction"]["mse_scale"] = written
        if written == "absent":
            del content["extraction"]["mse_scale"]

    edit(saved_nla / "reconstructor", change)
    assert NLA.from_pretrained(saved_nla).mse_scale == read


BAD = {
    "kind": (lambda c: c.update(kind="nla_dataset"), "kind"),
    "role": (lambda c: c.update(role="judge"), "role"),
    "no base": (lambda c: c.pop("base_checkpoint"), "base_checkpoint"),
    "negative width": (lambda c: c.update(d_model=-32), "d_model"),
    "other width": (lambda c: c.update(d_model=64), "d_model"),
    "width as text": (lambda c: c.update(d_model="32"), "d_model"),
    "width as bool": (lambda c: c.update(d_model=True), "d_model"),
    "other layer": (lambda c: c.update(extraction_layer_index=0), "layer"),
    "no layer": (lambda c: c.pop("extraction_layer_index"), "layer"),
    "two layers": (lambda c: c.update(critic={"extraction_layer_index": 2}), "layer"),
    "no scale": (lambda c: c["extraction"].pop("injection_scale"), "injection_scale"),
    "scale as text": (lambda c: c["extraction"].update(injection_scale="8e4"), "8e4"),
    "nan scale": (lambda c: c["extraction"].update(injection_scale=float("nan")), "injection_scale"),
    "negative scale": (lambda c: c["extraction"].update(injection_scale=-1.0), "injection_scale"),
    "yes as scale": (lambda c: c["extraction"].update(injection_scale=True), "injection_scale"),
    "extraction is a list": (lambda c: c.update(extraction=[1]), "extraction"),
    "no marker": (lambda c: c["tokens"].pop("injection_char"), "injection_char"),
    "other marker": (lambda c: c["tokens"].update(injection_char="\u33ff"), "marker"),
    "marker drifted": (lambda c: c["tokens"].update(injection_token_id=9), "injection_token_id.*9"),
    "left drifted": (lambda c: c["tokens"].update(injection_left_neighbor_id=9), "left_neighbor"),
    "right drifted": (lambda c: c["tokens"].update(injection_right_neighbor_id=9), "right_neighbor"),
    "no template": (lambda c: c["prompt_templates"].pop("av"), r"prompt_templates\.av"),
    "template without slot": (lambda c: c["prompt_templates"].update(av="hello"), "injection_char"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata_is_named(saved_nla: Path, name: str):
    """Faults 16 and 23."""
    change, message = BAD[name]
    edit(saved_nla / "verbalizer", change)
    with pytest.raises(NLAError, match=message) as caught:
        NLA.from_pretrained(saved_nla)
    assert str(saved_nla / "verbalizer") in str(caught.value) and "\n" not in str(caught.value)


def test_suffix_drift_is_an_error(saved_nla: Path):
    """Fault 23, of the reconstructor's prompt."""
    edit(saved_nla / "reconstructor", lambda c: c["tokens"].update(critic_suffix_ids=[1, 2, 3]))
    with pytest.raises(ReleaseError, match=r"critic_suffix_ids.*\[1, 2, 3\]"):
        NLA.from_pretrained(saved_nla)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b]\n"
CANARY = "kind: !!python/object/apply:os.system ['touch canary']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: nla_model\nkind: nla_model\n", "kind.*twice"),
        ("extraction:\n  a: 1\n  a: 2\n", "'a' occurs twice.*line 3"),
        (ALIASES, "aliases"),
        (CANARY, "not plain YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("no: 1\n", "not a string"),
        ("kind: [unclosed\n", "not plain YAML"),
        ("{" * 3000, "not plain YAML"),
        ("x: " + "y" * (1 << 20), "bytes"),
    ],
)
def test_unsafe_or_broken_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str):
    """Fault 16."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nla_meta.yaml").write_text(text)
    with pytest.raises(ReleaseError, match=message) as caught:
        read_metadata(tmp_path)
    assert str(tmp_path / "nla_meta.yaml") in str(caught.value)
    assert not (tmp_path / "canary").exists()


class Payload:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("half", ["verbalizer", "reconstructor"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "value_head.pt", "model.ckpt"])
@pytest.mark.parametrize("alone", [False, True])
def test_pickles_are_refused_and_not_run(
    saved_nla: Path, monkeypatch: pytest.MonkeyPatch, half: str, name: str, alone: bool
):
    monkeypatch.chdir(saved_nla)
    (saved_nla / half / name).write_bytes(pickle.dumps(Payload()))
    if alone:
        (saved_nla / half / "model.safetensors").unlink()
    with pytest.raises(ReleaseError, match=name):
        NLA.from_pretrained(saved_nla)
    assert not (saved_nla / "canary").exists()


def test_missing_head_is_an_error(saved_nla: Path):
    """Fault 28."""
    (saved_nla / "reconstructor" / "value_head.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"value_head\.safetensors is missing"):
        NLA.from_pretrained(saved_nla)


@pytest.mark.parametrize(
    "tensors", [{"weight": torch.zeros(32, 16)}, {"w": torch.eye(32)}, {"weight": torch.full((32, 32), torch.nan)}]
)
def test_wrong_head_is_an_error(saved_nla: Path, tensors: dict[str, torch.Tensor]):
    """Fault 28."""
    save_file(tensors, saved_nla / "reconstructor" / "value_head.safetensors")
    with pytest.raises(ReleaseError, match="value_head"):
        NLA.from_pretrained(saved_nla)


def test_truncated_head_is_an_error(saved_nla: Path):
    """Fault 28."""
    path = saved_nla / "reconstructor" / "value_head.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ReleaseError, match="not a safetensors file"):
        NLA.from_pretrained(saved_nla)


@pytest.mark.parametrize("half", ["verbalizer", "reconstructor"])
def test_missing_weights_are_an_error(saved_nla: Path, half: str):
    path = saved_nla / half / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layers.0.self_attn.q_norm" in name)
    save_file({k: v for k, v in weights.items() if k != name}, path, metadata={"format": "pt"})
    with pytest.raises(ReleaseError, match="1 missing weights"):
        NLA.from_pretrained(saved_nla)


def test_block_count_must_fit_the_layer(saved_nla: Path):
    path = saved_nla / "reconstructor" / "config.json"
    config = json.loads(path.read_text())
    config["num_hidden_layers"] = 1
    config["layer_types"] = config["layer_types"][:1]
    path.write_text(json.dumps(config))
    with pytest.raises(ReleaseError, match=r"unexpected weights|needs 2"):
        NLA.from_pretrained(saved_nla)


def test_code_in_a_checkpoint_is_not_run(saved_nla: Path, monkeypatch: pytest.MonkeyPatch):
    """Fault 43."""
    monkeypatch.chdir(saved_nla)
    path = saved_nla / "verbalizer" / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    path.write_text(json.dumps(config))
    (saved_nla / "verbalizer" / "evil.py").write_text("import os; os.system('touch canary')\nclass Evil: ...\n")
    with pytest.raises(ReleaseError):
        NLA.from_pretrained(saved_nla)
    assert not (saved_nla / "canary").exists()


def test_half_a_pair(saved_nla: Path):
    """Fault 47."""
    (saved_nla / "reconstructor").rename(saved_nla / "elsewhere")
    with pytest.raises(ReleaseError, match="half"):
        NLA.from_pretrained(saved_nla)


@pytest.mark.parametrize("name", ["runs/nothing/nla", "../../etc", "", "a\0b", "x" * 300])
def test_unknown_pairs_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ReleaseError, match=r"neither a folder nor a hub id|missing") as caught:
        NLA.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_only_safe_files_are_fetched(monkeypatch: pytest.MonkeyPatch, saved_nla: Path):
    asked = {}

    def download(source: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(source=source, revision=revision, patterns=allow_patterns)
        return str(saved_nla)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert NLA.from_pretrained("someone/a-pair", revision="abc").layer == 1
    assert asked["source"] == "someone/a-pair"
    assert asked["revision"] == "abc"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["patterns"])

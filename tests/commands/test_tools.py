"""nla doctor, prepare --new-model, info and publish, as commands."""

import json
from pathlib import Path

import pytest
import yaml
from support.metrics import METRICS
from support.models import MARKER

from nla.commands.cli import main
from nla.commands.doctor import known_problems
from nla.commands.new_model import round_above
from nla.models.pair import NLA
from nla.models.target import Target


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for topic in ("torch", "transformers", "cpu", "disk", "hub cache", "hub login", "offline mode"):
        assert topic in said
    assert "on (HF_HUB_OFFLINE)" in said


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("torch", "2.4.1+cu121", "problem"),
        ("transformers", "4.57.0", "problem"),
        ("transformers", "6.0.0", "problem"),
        ("bitsandbytes", "0.43.1", "problem"),
    ],
)
def test_known_bad_combinations(name: str, version: str, kind: str):
    assert [(finding.topic, finding.kind) for finding in known_problems({name: version})] == [(name, kind)]
    assert not list(known_problems({"torch": "2.13.0", "transformers": "5.23.0"}))


def test_a_new_models_config_is_measured_and_written(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "tiny.yaml"
    assert main(["prepare", "--new-model", tiny_folder, "--out", str(out)]) == 0
    found = yaml.safe_load(out.read_text())
    assert (found["id"], found["marker"], found["default_layer"]) == (tiny_folder, MARKER, 2)
    reading = Target.from_pretrained(tiny_folder, 2).read(["The committee met on Tuesday."], "all")
    assert 0.3 < float(reading.activation.norm(dim=-1).median()) / found["injection_scale"] < 1.3
    assert main(["prepare", "--new-model", tiny_folder, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert yaml.safe_load(out.read_text()) == found


def test_a_new_models_marker_is_none_of_its_texts_characters(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text(f"A text that quotes {MARKER} itself.")
    out = tmp_path / "tiny.yaml"
    given = ["prepare", "--new-model", tiny_folder, "--out", str(out), "--texts"]
    assert main([*given, str(tmp_path / "texts")]) == 2  # the only one that this tokenizer has
    assert "no character and no spare special token" in capsys.readouterr().err and not out.exists()
    (tmp_path / "texts" / "one.txt").write_text("A text without it.")
    assert main([*given, str(tmp_path / "texts")]) == 0
    assert yaml.safe_load(out.read_text())["marker"] == MARKER
    (tmp_path / "none").mkdir()
    assert main([*given[:-2], str(tmp_path / "other.yaml"), "--texts", str(tmp_path / "none")]) == 2
    assert "holds no text" in capsys.readouterr().err


@pytest.mark.parametrize(("norm", "scale"), [(116.0, 150.0), (0.31, 0.4), (9.1, 10.0), (56000.0, 60000.0)])
def test_the_scale_is_a_round_number_a_bit_above(norm: float, scale: float):
    assert round_above(norm) == pytest.approx(scale)


def test_publish_dry_run_writes_cards_and_pushes_nothing(nla: NLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    nla.base_model, nla.base_revision = "org/tiny", "c" * 40
    nla.save_pretrained("nla")
    Path("metrics.json").write_text(json.dumps(METRICS))
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_a, **_k: pytest.fail("something was pushed"))
    command = ["publish", "nla", "me/pair", "--licence", "apache-2.0", "--metrics", "metrics.json", "--dry-run"]
    assert main(command) == 0
    card = Path("published/av/README.md").read_text()
    for part in ("base_model: org/tiny", "license: apache-2.0", "0.654", "0.646 to 0.660", "1024 activations of 512",
                 "control: empty text | -0.748", "c" * 40, "confabulate"):  # fmt: skip
        assert part in card, part
    back = NLA.from_pretrained(verbalizer="published/av", reconstructor="published/ar")
    assert back.reconstruct(["a"]).equal(nla.reconstruct(["a"]))


def test_publish_uploads_both_halves(nla: NLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    nla.base_model = "org/tiny"
    nla.save_pretrained("nla")
    calls: list[str] = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda _s, name, **_k: calls.append(f"make {name}"))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _s, **k: calls.append(f"fill {k['repo_id']}"))
    assert main(["publish", "nla", "me/pair", "--licence", "mit"]) == 0
    assert calls == ["make me/pair-av", "make me/pair-ar", "fill me/pair-av", "fill me/pair-ar"]
    assert "Not evaluated." in Path("published/av/README.md").read_text()


def test_publish_refuses_what_only_this_machine_has(
    nla: NLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Fault 42: no local path leaves, whether as the base model or inside a file."""
    monkeypatch.chdir(tmp_path)
    nla.save_pretrained("local")
    assert main(["publish", "local", "me/pair", "--licence", "mit", "--dry-run"]) == 2
    assert "a folder of this machine" in capsys.readouterr().err
    nla.base_model = "org/tiny"
    nla.save_pretrained("nla")
    path = Path("nla/verbalizer/generation_config.json")
    path.write_text(json.dumps({"note": str(tmp_path)}))
    assert main(["publish", "nla", "me/pair", "--licence", "mit", "--dry-run", "--out", "x"]) == 2
    assert "names a path of this machine" in capsys.readouterr().err
    assert main(["publish", "nla", "../up", "--licence", "mit", "--dry-run", "--out", "y"]) == 2

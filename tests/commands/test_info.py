"""nla info: what a pair is, from its metadata alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.metrics import METRICS
from support.models import MARKER, TEMPLATES
from support.pairs import LORA
from support.released_pairs import BASES, golden_pair

from nla.commands.cli import main
from nla.commands.info import describe
from nla.errors import ReleaseError
from nla.models.pair import NLA
from nla.models.pretrained import hub
from nla.models.pretrained.loading import HALVES


def facts(pair: Path | str) -> dict[str, tuple[str, str]]:
    """The last of each name; evaluation lines are joined."""
    found: dict[str, tuple[str, str]] = {}
    for what, first, second in describe(str(pair)):
        found[what] = (
            (f"{found[what][0]}\n{first}", second) if what == "evaluation" and what in found else (first, second)
        )
    return found


def without_weights(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def test_a_folder_of_ours(nla: NLA, tmp_path: Path, tiny_folder: str):
    nla.base_revision = "c" * 40
    nla.save_pretrained(tmp_path / "run/nla", stage="joint")
    without_weights(tmp_path)
    (tmp_path / "run/evaluation").mkdir()
    (tmp_path / "run/evaluation/metrics.json").write_text(json.dumps({**METRICS, "fve_warm_start": 0.4}))
    found, prompt = facts(tmp_path / "run/nla"), nla.verbalizer.prompt
    assert found["marker"][0] == (
        f"{MARKER}, token {prompt.marker_id}, between tokens {prompt.left_id} and {prompt.right_id}"
    )
    assert found["layer"] == ("block 1, counted from 0",) * 2 and found["d_model"] == ("32", "32")
    assert found["base_model"] == (tiny_folder,) * 2 and found["base_revision"] == ("c" * 40,) * 2
    assert float(found["injection_scale"][0]) == pytest.approx(32**0.5)
    assert found["format"][0] == "released, schema_version 1" and found["weights"] == ("whole", "whole")
    assert found["role"] == ("av", "ar") and found["stage"][1] == "joint"
    assert found["template av"] == (TEMPLATES.verbalizer, "") and found["template ar"] == ("", TEMPLATES.reconstructor)
    for part in ("FVE 0.654 (0.646 to 0.660) on 1024 activations of 512 documents", "warm start 0.400",
                 "control empty_text: FVE -0.748 (-0.765 to -0.736)"):  # fmt: skip
        assert part in found["evaluation"][0]


def test_adapters_are_named(tiny_folder: str, tmp_path: Path):
    NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, adapter=LORA).save_pretrained(tmp_path / "nla")
    without_weights(tmp_path)
    found = facts(tmp_path / "nla")
    assert (
        found["weights"][0].startswith("adapter of rank 2 and alpha 4 ") and found["weights"][1] == found["weights"][0]
    )
    assert found["base_revision"][0] == "not recorded" and found["evaluation"][0].startswith("no numbers")


@pytest.mark.parametrize("family", list(BASES))
def test_released_pairs_in_both_spellings(family: str, tmp_path: Path):
    verbalizer, _ = golden_pair(family, tmp_path)
    without_weights(tmp_path)
    found = facts(verbalizer)
    older = family != "qwen2"
    assert found["base_model"][0] == BASES[family] and found["injection_scale"][0] == ("80000.0" if older else "150.0")
    assert found["format"][0] == (
        "released, schema_version absent, older names (actor, critic)" if older else "released, schema_version 2"
    )
    assert found.get("continued from", ("", ""))[0] == ("" if older else "someone/warm-start-av")


def test_a_hub_pair_is_fetched_without_weights_and_its_card_read(
    nla: NLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    nla.base_model = "org/tiny"
    nla.save_pretrained("nla")
    Path("metrics.json").write_text(json.dumps(METRICS))
    publish = ["publish", "nla", "me/pair", "--licence", "mit", "--metrics", "metrics.json", "--dry-run"]
    assert main(publish) == 0
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(Path("published") / name.rpartition("-")[2])

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert facts("me/pair-av")["evaluation"][0] == (
        "FVE 0.654 on 1024 activations of 512 held-out documents, 95 % interval 0.646 to 0.660 "
        "(model card of the verbalizer)"
    )
    assert asked and all(not pattern.endswith(("safetensors", "*", "json*")) for pattern in asked[0])
    capsys.readouterr()
    assert main(["info", "me/pair-av"]) == 0
    assert MARKER in capsys.readouterr().out


@pytest.mark.parametrize("front", ["a: &a [1]\nb: *a", "model-index: [{results: 3}]", "model-index: [{x: 1}]", "{"])
def test_a_card_that_cannot_be_read_is_said_so(front: str, saved_nla: Path):
    """Fault 16, of model cards: no bomb, no crash."""
    (saved_nla / HALVES[0] / "README.md").write_text(f"---\n{front}\n---\n# A pair\n")
    assert "README.md cannot be read" in facts(saved_nla)["evaluation"][0]


def test_a_folder_that_is_no_pair(tmp_path: Path):
    with pytest.raises(ReleaseError, match=r"nla_meta.yaml is missing"):
        describe(str(tmp_path))

"""Faults of models, the hub and released pairs. Others of these cases are beside what they test:

21, 22, 26, 28, 29: test_architectures.py; 23, 24: test_prompts.py; 25, 27: test_verbalizer.py; 16, 17, 28, 43:
test_release.py and test_released.py; 47 offline and partly cached: test_released.py, over HTTP: test_hub.py; 42 in
publishing: test_tools.py.
"""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from nla.errors import NLAError, ReleaseError
from nla.models.pair import NLA
from nla.models.pretrained import hub


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_pair_of_which_one_half_cannot_be_fetched_is_not_loaded(saved_nla: Path, monkeypatch: pytest.MonkeyPatch):
    """Fault 47: never half a pair."""

    def only_one(name: str, **_kwargs: object) -> str:
        if name.endswith("-ar"):
            raise LocalEntryNotFoundError("gone")
        return str(saved_nla / "verbalizer")

    monkeypatch.setattr(hub, "snapshot_download", only_one)
    loader = "nla.models.pretrained.format.load_causal_lm"
    monkeypatch.setattr(loader, lambda *_a, **_k: pytest.fail("half a pair was loaded"))
    with pytest.raises(ReleaseError, match="x-ar"):
        NLA.from_pretrained("org/x-av")


@pytest.mark.parametrize("place", ["../outside.safetensors", "/tmp/outside.safetensors"])
def test_a_weight_map_that_leaves_the_folder_is_refused(saved_nla: Path, place: str):
    """Fault 42: an index that names a file outside loads nothing and writes nothing."""
    half = saved_nla / "verbalizer"
    names = list(load_file(half / "model.safetensors"))
    (half / "model.safetensors").rename(saved_nla / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    before = tree(saved_nla)
    with pytest.raises(NLAError, match="outside"):
        NLA.from_pretrained(saved_nla)
    assert tree(saved_nla) == before

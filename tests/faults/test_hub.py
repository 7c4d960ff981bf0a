"""Fault 47: what a hub answers over real HTTP, and what a person is told. In fresh processes, as the hub's own client
takes its address and cache from its environment when it is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import COMMIT, hub
from support.released_pairs import golden_pair

SCRIPT = """
import json, sys
from nla import NLA
from nla.models.backbone import load_model, load_tokenizer
from nla.errors import NLAError
from nla.models.pretrained.hub import cached_commit
said = {}
for name, call in json.loads(sys.argv[1]).items():
    kind, _, wanted = call.partition(" ")
    model, _, revision = wanted.partition("@")
    try:
        if kind == "pair":
            said[name] = NLA.from_pretrained(wanted).parents
        elif kind == "model":
            load_model(model, revision=revision or None)
            said[name] = cached_commit(model, revision or None)
        else:
            load_tokenizer(model, revision=revision or None)
    except NLAError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
KINDS = ("pair", "model", "tokenizer")
ASKED = {f"{kind} {name}": f"{kind} org/{name}" for kind in KINDS for name in ("gated", "missing")}
ASKED |= {f"{kind} revision": f"{kind} org/tiny-av@v9" for kind in KINDS}
ASKED |= {"half": "pair org/alone-av", "pair": "pair org/tiny-av", "base": "model org/base"}


def ask(asked: dict[str, str], cache: Path, **environment: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables = {**clean, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> dict[str, str]:
    """What is said of each, with the hub there; then after it has gone, and offline."""
    root = tmp_path_factory.mktemp("hub")
    verbalizer, reconstructor = golden_pair("qwen2", root)
    served = {"org/tiny-av": verbalizer, "org/tiny-ar": reconstructor, "org/alone-av": verbalizer}
    with hub({**served, "org/base": Path(tiny_folder)}) as (address, paths):
        found = ask(ASKED, root / "cache", HF_ENDPOINT=address)
        assert not any(path.endswith((".bin", ".py", ".pt")) for path in paths)
    gone = {"gone pair": "pair org/other-av", "kept pair": "pair org/tiny-av"}
    found |= ask(gone, root / "cache", HF_ENDPOINT=address)
    off = {"offline pair": "pair org/other-av", "offline model": "model org/other", "offline kept": "pair org/tiny-av"}
    return found | ask(off, root / "cache", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("kind", KINDS)
def test_gated_missing_and_unknown_revision_come_with_the_remedy(kind: str, told: dict[str, str]):
    """Fault 47."""
    gated, missing, revision = (told[f"{kind} {name}"] for name in ("gated", "missing", "revision"))
    assert "accept its terms at https://huggingface.co/org/gated" in gated and "hf auth login" in gated
    assert "'org/missing'" in missing and "no such repository, or it is private" in missing
    assert "no revision 'v9'" in revision
    assert not any("\n" in message for message in (gated, missing, revision))


def test_never_half_a_pair(told: dict[str, str]):
    """Fault 47: the other half is not there; nothing is loaded, and its name is said."""
    assert "'org/alone-ar'" in told["half"] and "no such repository" in told["half"]


def test_a_pair_and_a_model_are_fetched_with_their_commit(told: dict[str, str]):
    assert told["pair"] == [f"org/tiny-av@{COMMIT}", f"org/tiny-ar@{COMMIT}"]
    assert told["base"] == COMMIT


def test_without_the_hub_the_cache_serves_and_the_rest_is_explained(told: dict[str, str]):
    """Fault 47: the hub has gone (a model is asked for again for a minute by transformers), and offline mode."""
    assert "cannot be reached" in told["gone pair"] and "check the network" in told["gone pair"]
    for what in ("pair", "model"):
        assert "HF_HUB_OFFLINE" in told[f"offline {what}"] and "hf download org/other" in told[f"offline {what}"]
    assert told["kept pair"] == told["offline kept"] == told["pair"]

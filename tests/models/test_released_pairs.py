"""Released pairs: read unchanged, from folders and offline from the hub's cache; ours read by plain tools."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.models import sampling_params
from support.released_pairs import BASES, LAYER, WIDTH, golden_pair, prompt_ids, put_into_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

from nla.errors import ReleaseError
from nla.models.pair import NLA

TEXTS = ["It rains in the town.", "a", ""]
SCALES = {"qwen2": 150.0, "gemma3_images": 80000.0}


def vectors(count: int = 2) -> torch.Tensor:
    return 40 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def client_reconstruct(folder: Path, text: str) -> torch.Tensor:
    """As a reader without this package would do it: plain transformers, the norm removed, the head applied by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    template = next(v for k, v in _meta(folder)["prompt_templates"].items() if k in ("ar", "critic"))
    ids = AutoTokenizer.from_pretrained(folder)(template.replace("{explanation}", text), return_tensors="pt")[
        "input_ids"
    ]
    decoder = model.model
    decoder.norm = torch.nn.Identity()
    with torch.no_grad():
        hidden = decoder(input_ids=ids).last_hidden_state[0, -1]
    return load_file(folder / "value_head.safetensors")["weight"] @ hidden


def client_explain(folder: Path, activation: torch.Tensor, tokens: int) -> list[int]:
    """Greedy ids: the marker's row replaced after the embedding's scaling, the whole prompt run for each token."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    meta, tokenizer = _meta(folder), AutoTokenizer.from_pretrained(folder)
    ids = prompt_ids(tokenizer)
    weight = model.get_input_embeddings().weight
    factor = math.sqrt(WIDTH) if "Gemma" in type(model).__name__ else 1.0
    rows = weight[ids] * factor
    rows[ids.index(meta["tokens"]["injection_token_id"])] = (
        activation / activation.norm() * meta["extraction"]["injection_scale"]
    )
    answer: list[int] = []
    with torch.no_grad():
        for _ in range(tokens):
            fed = torch.cat([rows, weight[answer] * factor]).unsqueeze(0)
            body = getattr(model.model, "language_model", model.model)
            logits = model.lm_head(body(inputs_embeds=fed, use_cache=False).last_hidden_state[0, -1])
            answer.append(int(logits.argmax()))
    return answer


def _meta(folder: Path) -> dict:
    return yaml.safe_load((folder / "nla_meta.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=list(BASES))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    return request.param, *golden_pair(request.param, tmp_path_factory.mktemp(request.param))


def test_a_released_pair_gives_the_numbers_of_a_plain_reader(golden: tuple[str, Path, Path]):
    family, verbalizer, reconstructor = golden
    nla = NLA.from_pretrained(verbalizer=verbalizer, reconstructor=reconstructor)
    assert (nla.layer, nla.base_model, nla.d_model) == (LAYER, BASES[family], WIDTH)
    assert (nla.injection_scale, nla.mse_scale) == (SCALES[family], pytest.approx(math.sqrt(WIDTH)))
    for text, vector in zip(TEXTS, nla.reconstruct(TEXTS), strict=True):
        assert torch.allclose(vector, client_reconstruct(reconstructor, text), atol=1e-5)
    sampled = nla.verbalizer.sample(vectors(), sampling_params(max_new_tokens=8, temperature=0))
    for row, activation in enumerate(vectors()):
        ids = sampled.tokens[row][sampled.mask[row]].tolist()
        assert ids == client_explain(verbalizer, activation, len(ids))


def test_a_plain_reader_gives_the_numbers_of_a_pair_that_we_wrote(golden: tuple[str, Path, Path], tmp_path: Path):
    _, verbalizer, reconstructor = golden
    nla = NLA.from_pretrained(verbalizer=verbalizer, reconstructor=reconstructor)
    nla.save_pretrained(tmp_path / "nla", stage="joint")
    for text, ours in zip(TEXTS, nla.reconstruct(TEXTS), strict=True):
        assert torch.allclose(ours, client_reconstruct(tmp_path / "nla" / "reconstructor", text), atol=1e-5)
    sampled = nla.verbalizer.sample(vectors(1), sampling_params(max_new_tokens=8, temperature=0))
    ids = sampled.tokens[0][sampled.mask[0]].tolist()
    assert ids == client_explain(tmp_path / "nla" / "verbalizer", vectors(1)[0], len(ids))
    theirs, ours = _meta(reconstructor), _meta(tmp_path / "nla" / "reconstructor")
    for key in ("kind", "base_checkpoint", "d_model"):
        assert ours[key] == theirs[key]
    suffix = theirs["tokens"].pop("critic_suffix_ids")
    assert ours["tokens"].pop("critic_suffix_ids")[-len(suffix) :] == suffix
    assert ours["tokens"] == theirs["tokens"]


def test_a_half_finds_its_partner_by_name(golden: tuple[str, Path, Path], tmp_path: Path):
    _, verbalizer, reconstructor = golden
    nla = NLA.from_pretrained(verbalizer)
    assert torch.equal(nla.reconstruct(TEXTS), NLA.from_pretrained(reconstructor).reconstruct(TEXTS))
    shutil.copytree(verbalizer, tmp_path / "alone")
    with pytest.raises(ReleaseError, match="one half of a pair: name both"):
        NLA.from_pretrained(tmp_path / "alone")


FRESH = """
import json, sys, torch
from nla import NLA, Target
from nla.errors import NLAError
av, ar, base, partial = sys.argv[1:]
nla = NLA.from_pretrained(verbalizer=av, reconstructor=ar)
target = Target.from_pretrained(base, 1)
untrained = NLA.from_target(base, 1, nla.templates, base=target.model)
h = 40 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
said = []
for wanted in (partial, "no-one/nothing", av + "@v9", "kitft/partial-L1-av", "../../etc", "a" * 300 + "/b"):
    try:
        NLA.from_pretrained(wanted)
    except NLAError as error:
        said.append(str(error))
try:
    Target.from_pretrained("no-one/nothing", 1)
except NLAError as error:
    said.append(str(error))
texts = ["It rains in the town.", "a", ""]
print(json.dumps({"reconstruct": nla.reconstruct(texts).tolist(), "explain": nla.explain(h, 2, max_new_tokens=8),
    "read": target.read(texts[:1]).activation.tolist(), "revision": untrained.base_revision,
    "parents": nla.parents, "said": said}))
"""


def test_from_the_hubs_cache_in_a_fresh_offline_process(tmp_path: Path, tiny_folder: str):
    """Faults 28 and 47: identical numbers, commits recorded, what is not in the cache explained."""
    verbalizer, reconstructor = golden_pair("qwen2", tmp_path)
    cache = tmp_path / "hub"
    names = "kitft/nla-tiny-L1-av", "kitft/nla-tiny-L1-ar"
    commits = [put_into_cache(cache, *pair) for pair in zip(names, (verbalizer, reconstructor), strict=True)]
    base = put_into_cache(cache, "org/tiny", Path(tiny_folder))
    put_into_cache(cache, "kitft/partial-L1-av", verbalizer)
    (reconstructor / "value_head.safetensors").unlink()
    put_into_cache(cache, "kitft/half-L1-ar", reconstructor)
    put_into_cache(cache, "kitft/half-L1-av", verbalizer)
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", FRESH, *names, "org/tiny", "kitft/half-L1-av"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)

    verbalizer, reconstructor = golden_pair("qwen2", tmp_path / "again")
    here = NLA.from_pretrained(verbalizer=verbalizer, reconstructor=reconstructor)
    assert torch.equal(torch.tensor(result["reconstruct"]), here.reconstruct(TEXTS))
    assert result["explain"] == here.explain(vectors(), 2, max_new_tokens=8)
    assert result["revision"] == base
    assert result["parents"] == [f"{name}@{commit}" for name, commit in zip(names, commits, strict=True)]
    partial, unknown, revision, alone, *bad, target = result["said"]
    assert "value_head.safetensors is missing" in partial
    assert "hf download no-one/nothing" in unknown and "HF_HUB_OFFLINE" in unknown
    assert "not in the cache at revision 'v9'" in revision
    assert "kitft/partial-L1-ar" in alone and "hf download" in alone
    assert len(bad) == 2
    assert "hf download no-one/nothing" in target
    assert not any("\n" in message for message in result["said"])


def test_the_written_pair_names_base_and_parents_by_commit(tmp_path: Path, golden: tuple[str, Path, Path]):
    _, verbalizer, reconstructor = golden
    nla = NLA.from_pretrained(verbalizer=verbalizer, reconstructor=reconstructor)
    nla.base_revision, nla.parents = "c" * 40, (f"kitft/x-av@{'d' * 40}",)
    nla.save_pretrained(tmp_path / "nla")
    assert _meta(tmp_path / "nla" / "verbalizer")["base_revision"] == "c" * 40
    again = NLA.from_pretrained(tmp_path / "nla")
    assert (again.base_revision, again.parents) == (nla.base_revision, nla.parents)


ONE_OF_A_KIND = {
    "unknown field": ("surprise: 1\n", "unknown field surprise"),
    "unknown extraction": ("extraction:\n  injection_scale: 150.0\n  centred: true\n", "extraction.centred"),
    "unknown version": ("schema_version: 9\n", "schema_version is 9"),
    "normalised activations": ("extraction:\n  injection_scale: 150.0\n  norm: l2\n", "extraction.norm"),
    "two widths": ("extraction:\n  injection_scale: 150.0\n  d_model: 64\n", "extraction.d_model"),
    "two bases": ("extraction:\n  injection_scale: 150.0\n  base_model: other/base\n", "extraction.base_model"),
    "two layers": ("critic:\n  extraction_layer_index: 0\n", "critic.extraction_layer_index"),
    "two templates": ('prompt_templates:\n  av: "a {injection_char} b"\n  actor: "{injection_char}"\n', "actor"),
}


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_unknown_or_contradictory_fields_are_named(name: str, tmp_path: Path):
    """Fault 17, of pairs."""
    verbalizer, reconstructor = golden_pair("qwen2", tmp_path)
    added, field = ONE_OF_A_KIND[name]
    path = verbalizer / "nla_meta.yaml"
    content = yaml.safe_load(path.read_text()) | yaml.safe_load(added)
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(ReleaseError, match=field) as caught:
        NLA.from_pretrained(verbalizer=verbalizer, reconstructor=reconstructor)
    assert str(path) in str(caught.value)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before

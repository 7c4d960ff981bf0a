"""`nla prepare --new-model <folder or hub id>`: a config for a model that has none.

Its marker, its activations' norms and a scale, verified by injecting once.
"""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import yaml

from nla import files
from nla.data.corpora import FileCorpus
from nla.errors import ConfigError, DataError
from nla.models.backbone import depth, resolve, width
from nla.models.pretrained.hub import cached_commit
from nla.models.prompts import Templates, build_verbalizer_prompt, find_marker
from nla.models.target import Target
from nla.models.verbalizer import Verbalizer

MOST_TEXTS, MEASURED_TEXTS, MEASURED_CHARACTERS = 10000, 16, 1000  # searched for a marker; read for the norms
FRACTIONS = {"early": 0.25, "middle": 0.5, "two_thirds": 0.6667, "late": 0.85}
TEMPLATES = Templates(
    "What is on the model's mind here? <concept>{injection_char}</concept> Answer inside <explanation> tags.",
    "Summary of the following text: <text>{explanation}</text> <summary>",
)
SAMPLE = (  # if no text is given: a few kinds of ordinary text
    "The committee met on Tuesday to discuss the new bridge, which will cost more than expected and open a year late.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total\n",
    "Dear Anna, thank you for your letter. The garden is full of apples this year, and we hope you will visit us soon.",
    "In 1905 Einstein showed that the speed of light is the same for all observers, whatever their own motion.",
)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Measurements of a model and the values proposed for it."""

    model_id: str
    revision: str | None
    blocks: int
    d_model: int
    marker: str
    layers: dict[str, int]  # by name of a layer config
    median_norm: dict[str, float]  # of activations at those layers
    layer: int
    injection_scale: float


def main(arguments: Sequence[str]) -> int:
    """Measure a model, write its config and print the measurements; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--new-model", required=True, metavar="ID", help="folder or hub id of a causal language model")
    parser.add_argument("--out", type=Path, default=None, help="the config's file (default conf/model/<name>.yaml)")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--texts", default=None, help="yours: for the norms, and to avoid as marker")
    options = parser.parse_args(arguments)
    name = re.sub(r"[^a-z0-9]+", "_", options.new_model.rstrip("/").rpartition("/")[2].lower()).strip("_")
    path = options.out or Path(f"conf/model/{name}.yaml")
    refuse_existing(path)
    read = [] if options.texts is None else texts_of(options.texts)
    measured = tuple(text[:MEASURED_CHARACTERS] for text in read[:MEASURED_TEXTS]) or SAMPLE
    proposal = propose(options.new_model, measured, dtype=options.dtype, avoided=read)
    write(proposal, path)
    print(f"marker {proposal.marker}, {proposal.blocks} blocks of width {proposal.d_model}")
    for layer, block in proposal.layers.items():
        print(f"layer={layer}: block {block}, median norm {proposal.median_norm[layer]:.4g}")
    print(f"injection_scale {proposal.injection_scale:g}; written to {path}")
    return 0


def texts_of(path: str) -> list[str]:
    """The first texts below a path. Raises DataError."""
    rows = islice(FileCorpus(path).rows(), MOST_TEXTS)
    texts = [row.content for row in rows if isinstance(row.content, str) and row.content.strip()]
    if not texts:
        raise DataError(f"--texts {path}: holds no text; give a folder of UTF-8 files, Parquet or JSONL")
    return texts


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists: give another file with --out, or remove it")


def propose(
    model_id: str,
    texts: tuple[str, ...] = SAMPLE,
    dtype: str = "float32",
    revision: str | None = None,
    avoided: Sequence[str] = (),
) -> Proposal:
    """Load the model, measure it on `texts`, and try the injection. Raises ModelError, InjectionError (no marker).

    `avoided`: texts in which the marker must not occur.
    """
    target = Target.from_pretrained(model_id, 0, dtype, revision)
    marker = find_marker(target.tokenizer, avoided)
    blocks = depth(target.model)
    layers = {name: min(round(fraction * blocks), blocks - 1) for name, fraction in FRACTIONS.items()}
    norms = {}
    for name, layer in layers.items():
        target.layer = layer
        norms[name] = float(target.read(texts, "all").activation.norm(dim=-1).median())
    scale = round_above(norms["two_thirds"])
    target.layer = layers["two_thirds"]
    verify(target, marker, scale)
    commit = cached_commit(resolve(model_id), revision)
    return Proposal(model_id, commit, blocks, width(target.model), marker, layers, norms, target.layer, scale)


def round_above(norm: float) -> float:
    """A round number a bit above: the next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(norm))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power > norm)


@torch.no_grad()
def verify(target: Target, marker: str, scale: float) -> None:
    """Two activations must give two different next-token distributions. Raises InjectionError, ConfigError."""
    prompt = build_verbalizer_prompt(target.tokenizer, TEMPLATES.verbalizer, marker)
    verbalizer = Verbalizer(target.model, target.tokenizer, prompt, scale, TEMPLATES.reconstructor)
    activation = target.read(SAMPLE[:2]).activation
    tokens, mask = verbalizer.respond(["a"] * 2)
    first, second = verbalizer(activation, tokens, mask)
    if torch.allclose(first, second, atol=1e-6):
        raise ConfigError(f"injected activations change nothing at scale {scale:g}: this architecture is not supported")


def write(proposal: Proposal, path: Path) -> None:
    """The model config, for `model=<name>`. Raises ConfigError if the file exists."""
    refuse_existing(path)
    norms = ", ".join(
        f"{proposal.median_norm[name]:.4g} at block {layer} ({name})" for name, layer in proposal.layers.items()
    )
    content = {
        "id": proposal.model_id,
        "path": None,
        "dtype": "float32",
        "revision": proposal.revision,
        "default_layer": proposal.layer,
        "marker": proposal.marker,
        "injection_scale": proposal.injection_scale,
        "mse_scale": "sqrt_d_model",
        "shape": None,
        "templates": {"verbalizer": TEMPLATES.verbalizer, "reconstructor": TEMPLATES.reconstructor},
    }
    head = f"# {proposal.blocks} blocks of width {proposal.d_model}. Median norm of activations: {norms}.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))

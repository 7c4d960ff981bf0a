"""Which of the last tokens can be read from one activation by a linear map, block by block?

    python benchmarks/readable_words.py              # SmolLM2 on sotu: 40,000 activations to fit, 4,000 held out
    python benchmarks/readable_words.py --quick      # a size for a test

For each block and each distance k, a ridge regression from the activation (at norm sqrt(d)) to the input embedding of
the token k before its own; the token is read if its embedding is the nearest (by cosine, among all tokens of the
vocabulary) to the prediction. A linear map is a lower bound on what the verbalizer could read.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from timing import ROOT, cpu_model
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.padding import length_buckets, padded
from nla.core.ridge import NormalEquations
from nla.data.positions import keyed_seed
from nla.data.text import TextSource
from nla.models.backbone import depth
from nla.models.prompts import pad_id
from nla.models.target import Target

DISTANCES = (0, 1, 2, 3)
PENALTY = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    sizes = {"warm_start": 500, "validation": 100} if arguments.quick else {"warm_start": 40_000, "validation": 4000}
    target = Target.from_pretrained("smollm2", 0, arguments.dtype)
    layers = list(range(0 if arguments.quick else 4, depth(target.model), 5 if arguments.quick else 2))
    table: Any = target.model.get_input_embeddings()
    embedding = table.weight.detach().float()
    embedding = torch.nn.functional.normalize(embedding - embedding.mean(0), dim=1)
    source = TextSource("sotu", {"warm_start": 0.7, "validation": 0.3}, "nla", "text", None, None, 200, 600, 5, None)
    width = embedding.shape[1]
    equations = {layer: NormalEquations.empty(target.d_model + 1, len(DISTANCES) * width) for layer in layers}
    for activation, tokens in _read(target, source, "warm_start", layers, sizes["warm_start"]):
        for index, layer in enumerate(layers):
            equations[layer].add(_inputs(activation[:, index]), embedding[tokens].flatten(1))
    maps = {layer: sums.solve([PENALTY])[0].float() for layer, sums in equations.items()}
    right, held_out = torch.zeros(len(layers), len(DISTANCES)), 0
    for activation, tokens in _read(target, source, "validation", layers, sizes["validation"]):
        held_out += len(tokens)
        for index, layer in enumerate(layers):
            predicted = (_inputs(activation[:, index]) @ maps[layer].T).unflatten(1, (len(DISTANCES), width))
            right[index] += ((predicted @ embedding.T).argmax(-1) == tokens).sum(0)
    shares = {layer: dict(zip(DISTANCES, row)) for layer, row in zip(layers, (right / held_out).tolist())}
    for layer, row in shares.items():
        print(f"block {layer:2d}", "  ".join(f"{k} before: {share:.3f}" for k, share in row.items()))
    folder: Path = ROOT / ("runs/benchmarks" if arguments.quick else "benchmarks/results")
    folder.mkdir(parents=True, exist_ok=True)
    written = {"command": "python benchmarks/readable_words.py", "machine": cpu_model(), "fitted": sizes["warm_start"],
               "held_out": held_out, "read": shares}  # fmt: skip
    (folder / "readable_words.json").write_text(json.dumps(written, indent=1) + "\n")
    return 0


def _inputs(activation: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch input"]:
    return torch.cat([normalized_activations(activation).float(), torch.ones(len(activation), 1)], 1)


def _read(
    target: Target, source: TextSource, split: str, layers: list[int], count: int
) -> Iterator[tuple[Float[Tensor, "batch layer d_model"], Int[Tensor, "batch distance"]]]:
    """Activations at every token with as many before it, and its last tokens, the nearest first."""
    documents = sorted(source.documents(split), key=lambda document: keyed_seed("words", document.id))
    texts = [list(target.tokenizer(document.text)["input_ids"]) for document in documents[: math.ceil(count / 100)]]
    left = count
    for bucket in length_buckets([len(ids) for ids in texts], 4096):
        if left <= 0:
            return
        ids, mask = padded([texts[index] for index in bucket], pad_id(target.tokenizer))
        row, position = torch.nonzero(mask.bool() & (torch.arange(ids.shape[1]) >= max(DISTANCES)), as_tuple=True)
        row, position = row[:left], position[:left]
        left -= len(row)
        with torch.no_grad():
            activation = target(ids, mask.bool(), row, position, layers=layers).float()
        yield activation, torch.stack([ids[row, position - k] for k in DISTANCES], 1)


if __name__ == "__main__":
    raise SystemExit(main())

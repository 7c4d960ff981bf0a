"""Scoring explanations: `Reconstructor.reconstruct` against one text per forward, which the released client does.

    python benchmarks/scoring.py

The world's reconstructor, texts of one to all of the facts of a document. Both give the same predictions.
"""

import random
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from models import world_pair
from timing import alternate, options, pin, record
from torch import Tensor

from nla.data.world import WorldSource
from nla.models.reconstructor import Reconstructor


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--pair", type=Path, help="saved pair of the world; default: an untrained one, as fast")
    parser.add_argument("--texts", type=int, default=256)
    arguments = parser.parse_args()
    pin(arguments.core)
    reconstructor = world_pair(arguments.pair).reconstructor
    texts = explanations(8 if arguments.quick else arguments.texts)

    torch.testing.assert_close(reconstructor.reconstruct(texts), one_by_one(reconstructor, texts), atol=1e-3, rtol=1e-3)
    comparison = alternate(
        lambda: float(len(reconstructor.reconstruct(texts))),
        lambda: float(len(one_by_one(reconstructor, texts))),
        arguments.repeats,
    )
    title = f"scoring {len(texts)} explanations, world's reconstructor"
    tokens = reconstructor.tokenize(texts)[1].sum(1).float()
    figures = {"tokens": {"mean": float(tokens.mean()), "least": float(tokens.min()), "most": float(tokens.max())}}
    record("scoring", arguments, [comparison.row("scoring", title, "one text per forward", "texts")], figures)
    return 0


def explanations(count: int) -> list[str]:
    """Of each of `count` documents, the first sentences of all that is true of it."""
    source = WorldSource({"test": count})
    chance = random.Random(0)
    texts = []
    for document in source.documents("test"):
        sentences = source.full_description(document.id, document.text).split(". ")
        texts.append(". ".join(sentences[: chance.randint(1, len(sentences))]))
    return texts


@torch.no_grad()
def one_by_one(reconstructor: Reconstructor, texts: list[str]) -> Float[Tensor, "sample d_model"]:
    return torch.cat([reconstructor(*reconstructor.tokenize([text])) for text in texts])


if __name__ == "__main__":
    sys.exit(main())

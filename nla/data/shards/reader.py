"""Rows that are stored activations: the target reads nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float

from nla.core.objectives import cosine
from nla.core.records import ActivationBatch
from nla.data.positions import keyed_seed
from nla.data.rows import Rows, Selection
from nla.data.shards import format
from nla.data.shards.shard_rows import Piece, ShardRows
from nla.data.shards.source import ShardSource
from nla.errors import DataError
from nla.models.prompts import token_ids
from nla.models.target import Target

MOST_ROWS = 8  # of one document in validation
PROBES = 8  # stored activations to compare with the target's own
AGREES = 0.98  # cosine; another layer, model or revision gives less, bfloat16 gives more


@dataclass(frozen=True, slots=True)
class ShardReader:
    """The rows of a layer and width. Their positions were chosen when the shards were made."""

    source: ShardSource
    layer: int
    d_model: int

    def __call__(self, selection: Selection) -> ShardRows:
        pieces = self.source.pieces(selection.split, self.layer, self.d_model, selection.explanations)
        if selection.documents is not None:
            pieces = _keyed_documents(pieces, selection.documents)
        return ShardRows(pieces, self.source.shuffle_rows, selection, self.layer)


def agreement(rows: Rows, target: Target, path: Path) -> Float[torch.Tensor, " probe"]:
    """Cosines of a few stored activations with those that the target now reads from the same texts.

    Raises DataError, naming the folder, if they differ: the shards are of another model, revision or layer. Texts whose
    tokens are not those of the whole document are left out; if there are no others, nothing is compared.
    """
    batch = rows.batch(0, min(len(rows), 8 * PROBES))
    if not isinstance(batch, ActivationBatch):
        raise TypeError(f"{type(rows).__name__} contains no activations")
    lengths = [len(tokens) for tokens in token_ids(target.tokenizer, batch.text)]
    stored = (batch.position + 1).tolist()
    probes = [i for i in sorted(range(len(batch)), key=lengths.__getitem__) if lengths[i] == stored[i]][:PROBES]
    if not probes:
        return torch.ones(0)
    now = target.read([batch.text[i] for i in probes], positions="last").activation.cpu()
    cosines = cosine(batch.activation[probes], now)
    if float(cosines.median()) < AGREES:
        raise DataError(
            f"data.path={path}: stored activations are not the target's (cosine {float(cosines.median()):.3f} at layer "
            f"{target.layer}): they are of another model, revision or layer"
        )
    return cosines


def _keyed_documents(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """Rows of `count` documents, chosen by a hash of their ids, whatever the order of the shards.

    A document with more than MOST_ROWS rows gives MOST_ROWS of them, evenly spaced: chunks of one long document share
    its id.
    """
    named = [(piece, format.read_group(piece.path, piece.group, [format.DOCUMENT])) for piece in pieces]
    columns = [table.column(format.DOCUMENT).take(piece.rows).to_pylist() for piece, table in named]
    chosen = set(
        sorted({name for column in columns for name in column}, key=lambda n: keyed_seed("validation", n))[:count]
    )
    total = Counter(name for column in columns for name in column)
    seen = Counter[str]()
    kept = []
    for piece, column in zip(pieces, columns, strict=True):
        take = []
        for name in column:
            take.append(name in chosen and _evenly(seen[name], total[name]))
            seen[name] += 1
        rows = piece.rows[take]
        if len(rows):
            kept.append(Piece(piece.path, piece.group, rows, piece.explanations))
    return kept


def _evenly(index: int, total: int) -> bool:
    """Whether the row at `index` of `total` is one of MOST_ROWS evenly spaced ones."""
    return total <= MOST_ROWS or (index + 1) * MOST_ROWS // total > index * MOST_ROWS // total

"""The Lightning loader of prepared activations: nothing is read by the target, and the place is a number of rows."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float

from nla.core.objectives import cosine
from nla.core.records import ActivationBatch
from nla.data.datamodule import VALIDATION_ROWS, NLADataModule
from nla.data.positions import keyed_seed
from nla.data.shards import format
from nla.data.shards.rows import Piece, ShardRows
from nla.data.shards.source import ShardSource
from nla.errors import ConfigError, DataError
from nla.models.prompts import token_ids
from nla.models.target import Target

PROBES = 8  # stored activations that are compared with the target's own
AGREES = 0.98  # cosine; another layer, model or revision gives less, bfloat16 gives more


class ShardDataModule(NLADataModule):
    """Rows of shards in place of documents; order, ranks, cursor and resume are those of `NLADataModule`.

    Every step takes `batch_size` rows. Which positions there are was decided when the shards were made, so
    `positions_per_document` and `min_context` concern only what evaluation reads.

    Args:
        target: what the activations must have come from; its layer and width choose the shards.
    """

    source: ShardSource

    def __init__(self, source: ShardSource, target: Target, **options: Any) -> None:
        super().__init__(source, target.tokenizer, **options)
        self.layer, self.d_model = target.layer, target.d_model
        self._rows: dict[str, ShardRows] = {}

    def setup(self, stage: str | None = None) -> None:
        splits = {"fit": (self.split, "validation"), "validate": ("validation",), "test": ("test",)}
        for split in splits.get(stage or "fit", (self.split, "validation")):
            self.rows(split)

    def rows(self, split: str) -> ShardRows:
        """The rows of a split that this stage can use. Raises DataError where there are none."""
        if split not in self._rows:
            training = split == self.split
            pieces = self.source.pieces(split, self.layer, self.d_model, self._explains(split))
            if split == "validation" and self.validation_documents is not None:
                pieces = _keyed_documents(pieces, self.validation_documents)
            self._rows[split] = ShardRows(pieces, self.source.shuffle_rows, self.seed if training else None)
        return self._rows[split]

    @property
    def documents_per_step(self) -> int:
        """Rows here, over all ranks. Raises ConfigError where the batch size does not divide."""
        ranks, _ = self._ranks()
        if self.batch_size < 1 or self.batch_size % ranks:
            raise ConfigError(f"batch_size={self.batch_size}: must be a multiple of {ranks}, the number of ranks")
        return self.batch_size

    def batch(self, split: str, first: int, number: int) -> ActivationBatch:  # pyright: ignore[reportIncompatibleMethodOverride]
        """This rank's part of step `number` after `first` rows of the split."""
        (ranks, rank), padding = self._ranks(), False
        if split == self.split:
            size = self.documents_per_step // ranks
            start = first + (number * ranks + rank) * size
        else:
            place, count, total = number * ranks + rank, self._batches(split), len(self.rows(split))
            padding, size = place >= count, -(-total // count)
            start = 0 if padding else place * size
            size = min(size, total - start)
        table = self.rows(split).take(start, size)
        return ActivationBatch(
            activation=torch.from_numpy(format.vectors(table).copy()),
            document=table.column(format.DOCUMENT).to_pylist(),
            position=torch.from_numpy(table.column(format.TOKENS).to_numpy().copy()) - 1,
            text=table.column(format.TEXT).to_pylist(),
            explanation=table.column(format.EXPLANATION).to_pylist() if self._explains(split) else None,
            padding=padding,
        )

    def check_against(self, target: Target) -> Float[torch.Tensor, " probe"]:
        """Cosines of a few stored activations with those the target reads now out of the same texts.

        Raises DataError where they are others: the shards are of another model, revision or layer. Texts whose tokens
        are not those of the whole document are left out, and so are shards in which there are only such.
        """
        table = self.rows(self.split).take(0, min(len(self.rows(self.split)), 8 * PROBES))
        texts, counts = table.column(format.TEXT).to_pylist(), table.column(format.TOKENS).to_pylist()
        lengths = [len(row) for row in token_ids(target.tokenizer, texts)]
        probes = [i for i in sorted(range(len(texts)), key=lengths.__getitem__) if lengths[i] == counts[i]][:PROBES]
        if not probes:
            return torch.ones(0)
        now = target.read([texts[i] for i in probes], positions="last").activation.cpu()
        found = cosine(torch.from_numpy(format.vectors(table)[probes].copy()), now)
        if float(found.median()) < AGREES:
            raise DataError(
                f"data.path={self.source.path}: stored activations are not the target's (cosine "
                f"{float(found.median()):.3f} at layer {self.layer}): they are of another model, revision or layer"
            )
        return found

    def _batches(self, split: str) -> int:
        return -(-len(self.rows(split)) // VALIDATION_ROWS)

    def _corpus(self) -> int:
        places = [(p.path.name, p.group, len(p.rows), int(p.rows.sum())) for p in self.rows(self.split).pieces]
        return keyed_seed(self.split, self.seed, self.layer, self.source.shuffle_rows, places)


def _keyed_documents(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """The rows of `count` documents, the same whatever else the shards hold between them."""
    named = [(piece, format.read_group(piece.path, piece.group, [format.DOCUMENT])) for piece in pieces]
    columns = [table.column(format.DOCUMENT).take(piece.rows).to_pylist() for piece, table in named]
    chosen = set(
        sorted({name for column in columns for name in column}, key=lambda n: keyed_seed("validation", n))[:count]
    )
    kept = []
    for piece, column in zip(pieces, columns):
        rows = piece.rows[[name in chosen for name in column]]
        if len(rows):
            kept.append(Piece(piece.path, piece.group, rows, piece.explanations))
    return kept

"""Rows of prepared activations, read a row group at a time and checked on reading."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from nla.core.records import ActivationBatch
from nla.data.positions import keyed_seed
from nla.data.rows import Selection
from nla.data.shards import format
from nla.data.shards.format import DOCUMENT, EXPLANATION, RESPONSE, TEXT, read_group
from nla.errors import DataError
from nla.models.explanations import parse_explanation


@dataclass(frozen=True, slots=True)
class Piece:
    """One row group and which of its rows are used."""

    path: Path
    group: int
    rows: np.ndarray  # indices within the group
    explanations: Path | None  # a file with the same rows; None: a column of the file itself


class ShardRows:
    """The rows of a split in an order that depends only on seed and epoch.

    For training, row groups come in a seeded order, a block of them at a time, and the rows of a block are shuffled.
    Only one block is in memory.

    Args:
        pieces: where the rows are.
        shuffle_rows: a block takes row groups until it has this many rows.
        selection: of these rows; its split and seed enter the order and the fingerprint.
        layer: of the activations.
    """

    unit = 1

    def __init__(self, pieces: Sequence[Piece], shuffle_rows: int, selection: Selection, layer: int) -> None:
        self.pieces, self.shuffle_rows, self.selection, self.layer = list(pieces), shuffle_rows, selection, layer
        self.sizes = np.array([len(piece.rows) for piece in self.pieces])
        self._seed = selection.seed if selection.shuffled else None
        self._plan: tuple[int, list[list[int]], np.ndarray] | None = None
        self._held: tuple[tuple[int, int], pa.Table, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def description(self) -> str:
        return f"{len(self)} stored activations of layer {self.layer}"

    def batch(self, start: int, size: int) -> ActivationBatch:
        table = self.take(start, size)
        explanations = table.column(EXPLANATION).to_pylist() if self.selection.explanations else None
        return ActivationBatch(
            activation=torch.from_numpy(format.vectors(table).copy()),
            document=table.column(DOCUMENT).to_pylist(),
            position=torch.from_numpy(table.column(format.TOKENS).to_numpy().copy()) - 1,
            text=table.column(TEXT).to_pylist(),
            explanation=explanations,
        )

    def fingerprint(self) -> int:
        pieces = [(p.path.name, p.group, len(p.rows), int(p.rows.sum())) for p in self.pieces]
        return keyed_seed(self.selection.split, self.selection.seed, self.layer, self.shuffle_rows, pieces)

    def take(self, place: int, count: int) -> pa.Table:
        """`count` rows from `place` on in the endless order: activations, documents, tokens, texts, explanations."""
        tables = []
        while count:
            epoch, offset = divmod(place, len(self))
            blocks, starts = self._blocks(epoch)
            number = int(np.searchsorted(starts, offset, "right")) - 1
            table, order = self._block(epoch, number, blocks[number])
            start = offset - int(starts[number])
            step = min(count, len(order) - start)
            tables.append(_taken(table, order[start : start + step]))
            place, count = place + step, count - step
        return pa.concat_tables(tables)

    def _blocks(self, epoch: int) -> tuple[list[list[int]], np.ndarray]:
        """The pieces of each block of an epoch, and the offset where each block begins."""
        if self._plan is None or self._plan[0] != epoch:
            order = np.arange(len(self.pieces))
            if self._seed is not None:
                order = np.random.default_rng(keyed_seed("shards", self._seed, epoch)).permutation(order)
            blocks, sizes = [[]], [0]
            for piece in order.tolist():
                if sizes[-1] >= self.shuffle_rows:
                    blocks.append([])
                    sizes.append(0)
                blocks[-1].append(piece)
                sizes[-1] += int(self.sizes[piece])
            self._plan = epoch, blocks, np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return self._plan[1], self._plan[2]

    def _block(self, epoch: int, number: int, pieces: list[int]) -> tuple[pa.Table, np.ndarray]:
        if self._held is None or self._held[0] != (epoch, number):
            self._held = None  # freed before the next is read: never two at once
            table = pa.concat_tables([read_piece(self.pieces[index]) for index in pieces])
            order = np.arange(len(table))
            if self._seed is not None:
                order = np.random.default_rng(keyed_seed("rows", self._seed, epoch, number)).permutation(order)
            self._held = (epoch, number), table, order
        return self._held[1], self._held[2]


def read_piece(piece: Piece) -> pa.Table:
    """The used rows of a group, with explanations if there are any. Raises DataError for damage."""
    names = [format.VECTOR, format.TOKENS, DOCUMENT, TEXT]
    text_name = text_column(piece.path)
    table = read_group(piece.path, piece.group, names + ([text_name] if text_name else []))
    if text_name == RESPONSE:
        texts = explanations_in(table.column(text_name))
        table = table.drop_columns([text_name]).append_column(EXPLANATION, texts)
    elif text_name is None:
        texts = pa.nulls(len(table), pa.string())
        if piece.explanations is not None:
            beside = read_group(piece.explanations, piece.group)
            if beside.column(DOCUMENT).to_pylist() != table.column(DOCUMENT).to_pylist():
                raise DataError(f"{piece.explanations}: its rows are not those of {piece.path}; {format.REMEDY}")
            texts = beside.column(EXPLANATION).combine_chunks()
        table = table.append_column(EXPLANATION, texts)
    table = _taken(table, piece.rows)
    values = format.vectors(table)
    if len(values) != len(table) or not np.isfinite(values).all():
        raise DataError(f"{piece.path}, row group {piece.group}: values that are not finite; {format.REMEDY}")
    return table.cast(
        pa.schema(
            [
                (format.VECTOR, pa.list_(pa.float32(), values.shape[1])),
                (format.TOKENS, pa.int64()),
                (DOCUMENT, pa.string()),
                (TEXT, pa.string()),
                (EXPLANATION, pa.string()),
            ]
        )
    )


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The given rows; activations are indexed by NumPy, not as an Arrow list type."""
    values = format.vectors(table)[rows]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    others = table.drop_columns([format.VECTOR]).take(pa.array(rows))
    return pa.table({format.VECTOR: column, **{name: others.column(name) for name in others.column_names}})


def text_column(path: Path) -> str | None:
    """The column of a file's explanations; None if it has none."""
    with format.open_parquet(path) as file:
        return next((name for name in (EXPLANATION, RESPONSE) if name in file.schema_arrow.names), None)


def explanations_in(responses: pa.ChunkedArray) -> pa.Array:
    """The explanations without their tags; null for an answer that is not well-formed."""
    explanations = [parse_explanation(text) if isinstance(text, str) else None for text in responses.to_pylist()]
    return pa.array(explanations, pa.string())

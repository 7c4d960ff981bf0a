"""From rows of a corpus to shards of activations: positions, one forward pass for all layers, files by split.

Shard `n` covers rows `n * size` to `(n + 1) * size` of the corpus, whatever the number of processes, so a preparation
continues with another number of them. Each process reads the whole corpus and works on its own shards, one at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from nla.data.corpora import to_document
from nla.data.documents import Prepared, ReadingPlan, collate, prepare
from nla.data.files import normalized, side
from nla.data.positions import keyed_fraction
from nla.data.prepare.folder import Folder, Record
from nla.data.shards import format
from nla.data.shards.format import Facts
from nla.data.source import Row, StreamedSource
from nla.errors import DataError
from nla.models.prompts import pad_id
from nla.models.target import Target

SPLIT_RULE = 2  # changes with the way a document's side is found: by its normalized text, or by its origin
DOCUMENTS_AT_ONCE = 64  # of a forward pass; the target divides them further by length


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read where.

    Args:
        reading: positions of a document.
        fractions, split_key: the side of a document, by a keyed hash: of `id_column` where there is one, else of the
            text itself, cases and white space apart, so that copies under other names stay on one side.
        documents_per_shard: rows of the corpus behind each shard.
        max_documents: rows of the corpus that are looked at; None: all.
        min_characters, max_characters: shorter texts are skipped, longer ones cut there.
    """

    reading: ReadingPlan
    fractions: dict[str, float]
    split_key: str
    documents_per_shard: int
    max_documents: int | None
    min_characters: int
    max_characters: int


def read_corpus(
    corpus: StreamedSource,
    target: Target,
    plan: Plan,
    folder: Folder,
    facts: Facts,
    rank: int = 0,
    ranks: int = 1,
    progress: Callable[[int], Any] = lambda rows: None,
) -> int:
    """Write this process's shards, leaving whole ones as they are; the number of all shards.

    `facts` are those of the files, but for layer and rows. Raises DataError.
    """
    number = 0
    rows = islice(corpus.rows(), plan.max_documents)
    while part := list(islice(rows, plan.documents_per_shard)):
        if number % ranks == rank and not folder.whole(number, len(part)):
            _write_shard(number, part, target, plan, folder, facts)
        progress(len(part))
        number += 1
    if number == 0:
        raise DataError(f"corpus {corpus.name}: holds no row (skipped: {dict(corpus.skipped) or 'nothing there'})")
    return number


def _write_shard(number: int, rows: list[Row], target: Target, plan: Plan, folder: Folder, facts: Facts) -> None:
    found, sides, skipped = _documents(rows, target, plan)
    values = _read(target, found, folder.layers)
    good = np.logical_and.reduce([format.sound(values[:, i]) for i in range(len(folder.layers))])
    format.check_share(int((~good).sum()), len(good), f"shard {number} of {folder.path}")
    places = [(item, place, end) for item in found for place, end in zip(item.positions, item.ends, strict=True)]
    files = []
    for split in sorted({sides[item.document.id] for item in found}):
        chosen = [i for i, (item, _, _) in enumerate(places) if good[i] and sides[item.document.id] == split]
        tokens = np.array([places[i][1] + 1 for i in chosen])
        documents = [places[i][0].document.root for i in chosen]
        texts = [places[i][0].document.text[: places[i][2]] for i in chosen]
        for index, layer in enumerate(folder.layers):
            name = folder.activations(layer, split, number)
            table = format.activation_table(values[chosen, index], layer, tokens, documents, texts)
            format.write_table(table, folder.path / name)
            format.write_facts(folder.path / name, _facts_of(facts, layer, len(chosen), folder.settings))
            files.append({"path": name, "split": split, "layer": layer, "rows": len(chosen)})
    counts = Counter(sides[item.document.id] for item in found)
    record = Record(folder.settings, len(rows), dict(counts), dict(skipped), int((~good).sum()), files)
    folder.write_record(number, record)


def _documents(rows: list[Row], target: Target, plan: Plan) -> tuple[list[Prepared], dict[str, str], Counter[str]]:
    """Documents with their positions, the split of each, and what was left out."""
    documents, sides, skipped = [], {}, Counter[str]()
    for row in rows:
        document, note = to_document(row, target.tokenizer, plan.min_characters, plan.max_characters)
        if note is not None:
            skipped[note] += 1
        if document is not None:
            key = normalized(document.text) if document.origin is None else document.origin
            sides[document.id] = row.split or side(keyed_fraction(plan.split_key, key), plan.fractions)
            documents.append(document)
    found, unread = prepare(documents, target.tokenizer, plan.reading)
    return found, sides, skipped + unread


def _read(target: Target, found: list[Prepared], layers: list[int]) -> Float[np.ndarray, "batch layer d_model"]:
    device = target.device
    values = np.zeros((sum(len(item.positions) for item in found), len(layers), target.d_model), np.float32)
    done = 0
    for batch in _chunks(found, DOCUMENTS_AT_ONCE):
        rows = collate([(item, 0) for item in batch], pad_id(target.tokenizer)).to(device)
        read = target(rows.tokens, rows.mask, rows.row, rows.position, layers=layers)
        values[done : done + len(read)] = read.to(torch.float32).cpu().numpy()
        done += len(read)
    return values


def _chunks(items: list[Prepared], size: int) -> Iterator[list[Prepared]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _facts_of(facts: Facts, layer: int, rows: int, settings: str) -> Facts:
    return Facts(
        facts.base_model, facts.d_model, layer, rows, facts.corpus, facts.positions_per_document, facts.base_revision,
        settings,
    )  # fmt: skip

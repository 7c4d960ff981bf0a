"""Rows that are documents: tokenized once, read by the target when their batch is due."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from nla.core.records import TokenBatch
from nla.data.documents import Prepared, ReadingPlan, collate, prepare
from nla.data.positions import keyed_seed
from nla.data.rows import Selection
from nla.data.source import Document, Source
from nla.data.warm_start import WarmStartTexts
from nla.errors import DataError


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """The documents of a source, tokenized by the target's tokenizer and read at the positions of the plan."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    plan: ReadingPlan
    warm_start: WarmStartTexts

    def __call__(self, selection: Selection) -> "DocumentRows":
        documents = self.source.documents(selection.split)
        if selection.documents is not None:
            documents = _keyed_choice(documents, selection.documents)
        warm_start = self.warm_start if selection.explanations else None
        plan = self.plan if selection.shuffled else replace(self.plan, early=0.0)  # validation and test: uniform
        prepared, skipped = prepare(documents, self.tokenizer, plan, warm_start)
        if not prepared:
            raise DataError(self._nothing(selection.split, skipped))
        return DocumentRows(self, selection, prepared, skipped)

    def _nothing(self, split: str, skipped: Counter[str]) -> str:
        needed = self.plan.min_context + self.plan.positions_per_document
        where = getattr(self.source, "path", None)
        return (
            f"{type(self.source).__name__ if where is None else f'data.path={where}'}: split '{split}' has no document "
            f"that can be read (skipped: {dict(skipped) or 'it is empty'}); a document needs {needed} tokens: "
            "give more or longer texts, or lower data.min_context or data.positions_per_document"
        )


class DocumentRows:
    """One row per document, with all its positions, which share one forward pass."""

    def __init__(
        self, reader: DocumentReader, selection: Selection, prepared: list[Prepared], skipped: Counter[str]
    ) -> None:
        self.reader, self.selection, self.prepared, self.skipped = reader, selection, prepared, skipped
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.prepared)

    @property
    def unit(self) -> int:
        return len(self.prepared[0].positions)

    @property
    def description(self) -> str:
        positions = sum(len(item.positions) for item in self.prepared)
        left_out = f", {self.skipped.total()} skipped ({dict(self.skipped)})" if self.skipped else ""
        return f"{len(self)} documents with {positions} positions{left_out}"

    def batch(self, start: int, size: int) -> TokenBatch:
        chosen = [self._at(number) for number in range(start, start + size)]
        pad_id = self.reader.tokenizer.pad_token_id
        return collate(
            [(self.prepared[index], epoch) for epoch, index in chosen],
            pad_id if isinstance(pad_id, int) else 0,
            self.reader.warm_start if self.selection.explanations else None,
            self.selection.seed,
        )

    def fingerprint(self) -> int:
        ids = (item.document.id for item in self.prepared)
        plan = self.reader.plan
        early = [plan.early] if plan.early else []
        return keyed_seed(self.selection.split, self.selection.seed, plan, *early, *ids)

    def _at(self, number: int) -> tuple[int, int]:
        """Epoch, and index of the document with this number in the endless order."""
        epoch, offset = divmod(number, len(self))
        if not self.selection.shuffled:
            return epoch, offset
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng(keyed_seed("order", self.selection.seed, epoch))
            self._order = epoch, rng.permutation(len(self))
        return epoch, int(self._order[1][offset])


def _keyed_choice(documents: Sequence[Document], count: int) -> list[Document]:
    """`count` documents, chosen by a hash of their ids, whatever the order of the corpus."""
    return sorted(documents, key=lambda document: keyed_seed("validation", document.id))[:count]

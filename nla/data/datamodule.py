"""The Lightning loader: whole documents with their positions, in an order that any restart finds again."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from nla.core.records import TokenBatch
from nla.data.documents import Prepared, ReadingPlan, collate, prepare
from nla.data.positions import keyed_seed
from nla.data.source import Document, Source
from nla.errors import ConfigError, DataError

log = logging.getLogger(__name__)

VALIDATION_ROWS = 64  # positions that a rank validates on at once


class Batches(IterableDataset[TokenBatch]):
    """Batch number `i` of a sequence of batches; loader workers take turns, so that their number changes nothing."""

    def __init__(self, module: "NLADataModule", split: str, first: int, count: int | None) -> None:
        self.module, self.split, self.first, self.count = module, split, first, count

    def __iter__(self) -> Iterator[TokenBatch]:
        worker = get_worker_info()
        number, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.count is None or number < self.count:
            yield self.module.batch(self.split, self.first, number)
            number += stride


class FiniteBatches(Batches):
    """The same with an end: validation and test."""

    def __len__(self) -> int:
        return self.count or 0


class NLADataModule(LightningDataModule):
    """Documents of one training split, and of validation and test.

    Training goes through the split endlessly, in a new seeded order each epoch, every document once per epoch; an epoch
    may end inside a batch. The place is one integer, the number of documents consumed by all ranks together, so a
    resumed run continues with the next document whatever the number of ranks or loader workers was. Each step takes
    `batch_size` positions over all ranks: a run on two ranks sees the batches of a run on one.

    Args:
        source: where the documents come from.
        tokenizer: the target's.
        split: what training reads: `warm_start` or `joint`.
        explanations: whether training and validation batches carry warm-start texts.
        batch_size: positions per optimizer step, over all ranks.
        positions_per_document: positions read in a document; they share its one forward pass.
        min_context: tokens to the left of a position, at least.
        max_tokens: tokens of a document that are looked at.
        validation_documents: how many to validate on, a choice keyed by their ids; None: all.
        seed: of positions, order and the choice of warm-start texts.
        num_workers: loader processes per rank.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        *,
        split: str,
        explanations: bool,
        batch_size: int,
        positions_per_document: int,
        min_context: int,
        max_tokens: int,
        validation_documents: int | None,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.source, self.tokenizer, self.split, self.explanations = source, tokenizer, split, explanations
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.validation_documents = validation_documents
        self.plan = ReadingPlan(positions_per_document, min_context, max_tokens, seed)
        self.skipped: dict[str, Counter[str]] = {}
        self._prepared: dict[str, list[Prepared]] = {}
        self._start = 0  # documents consumed when the current loader was made
        self._processed: int | None = None  # Lightning's count of batches at that moment
        self._order: tuple[int, np.ndarray] | None = None

    def setup(self, stage: str | None = None) -> None:
        splits = {"fit": (self.split, "validation"), "validate": ("validation",), "test": ("test",)}
        for split in splits.get(stage or "fit", (self.split, "validation")):
            self.prepared(split)

    def train_dataloader(self) -> DataLoader:
        self._start = self.cursor
        self._processed = self._batches_processed()
        return self._loader(Batches(self, self.split, self._start, None))

    def val_dataloader(self) -> DataLoader:
        return self._finite("validation")

    def test_dataloader(self) -> DataLoader:
        return self._finite("test")

    def prepared(self, split: str) -> list[Prepared]:
        """The split's documents, tokenized on first use. Raises DataError where none can be read."""
        if split not in self._prepared:
            explain = self.source.explanation if self._explains(split) else None
            documents = self.source.documents(split)
            if split == "validation" and self.validation_documents is not None:
                documents = _keyed_choice(documents, self.validation_documents)
            found, skipped = prepare(documents, self.tokenizer, self.plan, explain)
            if not found:
                raise DataError(self._nothing(split, skipped))
            self._prepared[split], self.skipped[split] = found, skipped
            left_out = f", {skipped.total()} skipped ({dict(skipped)})" if skipped else ""
            if self._ranks()[1] == 0:
                log.info("%s: %d documents with %d positions%s", split, len(found), _positions(found), left_out)
        return self._prepared[split]

    @property
    def cursor(self) -> int:
        """Documents consumed so far, by all ranks together, over all epochs.

        Batches that the loader has fetched ahead, or whose step did not finish, are not consumed.
        """
        if self._processed is None:  # no loader yet; on resume Lightning restores its own count after this state
            return self._start
        steps = self._batches_processed() - self._processed
        return self._start + (steps * self.documents_per_step if steps else 0)

    @property
    def documents_per_step(self) -> int:
        """Over all ranks. Raises ConfigError where the batch size does not divide."""
        each = len(self.prepared(self.split)[0].positions)
        ranks, _ = self._ranks()
        unit = each * ranks
        if self.batch_size < 1 or self.batch_size % unit:
            raise ConfigError(
                f"batch_size={self.batch_size} of the {self.split} data: it must be a multiple of {unit} "
                f"({each} positions per document, {ranks} ranks); try {max(1, self.batch_size // unit) * unit}"
            )
        return self.batch_size // each

    def batch(self, split: str, first: int, number: int) -> TokenBatch:
        """This rank's part of step `number` after `first` documents of the split; training wraps around at its end."""
        documents = self.prepared(split)
        ranks, rank = self._ranks()
        explanations, padding = self._explains(split), False
        if split == self.split:
            size = self.documents_per_step // ranks
            start = first + (number * ranks + rank) * size
            places = [self._at(place, len(documents)) for place in range(start, start + size)]
            rows = [(documents[index], epoch) for epoch, index in places]
        else:
            place, count = number * ranks + rank, self._batches(split)
            padding = place >= count
            size = -(-len(documents) // count)
            start = 0 if padding else place * size
            rows = [(item, 0) for item in documents[start : start + size]]
        pad_id = self.tokenizer.pad_token_id
        batch = collate(rows, self.source, explanations, self.seed, pad_id if isinstance(pad_id, int) else 0)
        return dataclasses.replace(batch, padding=padding)

    def state_dict(self) -> dict[str, Any]:
        return {"consumed_documents": self.cursor, "corpus": self._corpus()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["corpus"] != self._corpus():
            raise DataError(
                f"the checkpoint was made on other {self.split} data (documents, positions or seed have changed), so "
                "its place in them means nothing: restore the data, or start a new run with name=<another>"
            )
        self._start, self._processed = int(state_dict["consumed_documents"]), None

    def _finite(self, split: str) -> DataLoader:
        return self._loader(FiniteBatches(self, split, 0, -(-self._batches(split) // self._ranks()[0])))

    def _loader(self, batches: Batches) -> DataLoader:
        # a generator of its own: otherwise each pass draws a seed for the workers from the global one
        return DataLoader(
            batches, batch_size=None, num_workers=self.num_workers, generator=torch.Generator().manual_seed(self.seed)
        )

    def _batches(self, split: str) -> int:
        """How many batches validation and test are cut into, the same on any number of ranks.

        Ranks take turns. All run equally many, since one with a batch more would wait for the others: where they do not
        divide, the last ranks run a spare one, which counts for nothing.
        """
        documents = self.prepared(split)
        size = max(1, VALIDATION_ROWS // len(documents[0].positions))
        return -(-len(documents) // size)

    def _at(self, place: int, size: int) -> tuple[int, int]:
        """Epoch, and index of the document at this place of the endless order."""
        epoch, offset = divmod(place, size)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng(keyed_seed("order", self.seed, epoch)).permutation(size)
        return epoch, int(self._order[1][offset])

    def _explains(self, split: str) -> bool:
        return self.explanations and split in (self.split, "validation")

    def _ranks(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _batches_processed(self) -> int:
        # Counted after the step and before on_train_batch_end, where checkpoints are written.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]

    def _corpus(self) -> int:
        parts = (item.document.id for item in self.prepared(self.split))
        return keyed_seed(self.split, self.seed, self.plan, *parts)

    def _nothing(self, split: str, skipped: Counter[str]) -> str:
        needed = self.plan.min_context + self.plan.positions_per_document
        where = getattr(self.source, "path", None)
        return (
            f"{type(self.source).__name__ if where is None else f'data.path={where}'}: split '{split}' has no document "
            f"that can be read (skipped: {dict(skipped) or 'nothing there'}); a document needs {needed} tokens: "
            "give more or longer texts, or lower data.min_context or data.positions_per_document"
        )


def _positions(prepared: Sequence[Prepared]) -> int:
    return sum(len(item.positions) for item in prepared)


def _keyed_choice(documents: Sequence[Document], count: int) -> list[Document]:
    """`count` documents, the same whatever else the corpus holds between them."""
    return sorted(documents, key=lambda document: keyed_seed("validation", document.id))[:count]

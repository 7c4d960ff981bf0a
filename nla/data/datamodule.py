"""The Lightning data module: rows of a split, in an order that every restart repeats."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nla.core.records import ActivationBatch, TokenBatch
from nla.data.cursor import Cursor
from nla.data.rows import RowReader, Rows, Selection
from nla.errors import ConfigError, DataError

log = logging.getLogger(__name__)

VALIDATION_POSITIONS = 64  # in one validation batch of a rank


class Batches(IterableDataset[TokenBatch | ActivationBatch]):
    """Batches 0, 1, ... after `first` rows; loader workers take turns, so their number changes nothing."""

    def __init__(self, module: "NLADataModule", split: str, first: int, count: int | None) -> None:
        self.module, self.split, self.first, self.count = module, split, first, count

    def __iter__(self) -> Iterator[TokenBatch | ActivationBatch]:
        worker = get_worker_info()
        number, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while self.count is None or number < self.count:
            yield self.module.batch(self.split, self.first, number)
            number += stride


class FiniteBatches(Batches):
    """A finite number of batches: validation and test."""

    def __len__(self) -> int:
        return self.count or 0


class NLADataModule(LightningDataModule):
    """Rows of one training split, and of validation and test: documents, or stored activations.

    Training repeats the split endlessly, in a new seeded order each epoch, every row once per epoch; an epoch may end
    inside a batch. The place is one integer, the number of rows consumed by all ranks together, so a resumed run
    continues with the next row even if the number of ranks or loader workers changes. Each step takes `batch_size`
    positions over all ranks: a run on two ranks sees the batches of a run on one.

    Args:
        reader: makes the rows of a split.
        split: of training: `warm_start` or `joint`.
        explanations: whether training and validation batches carry warm-start texts.
        batch_size: positions per optimizer step, over all ranks.
        validation_documents: number to validate on, chosen by a hash of their ids; None: all.
        seed: of the order and of the choice of warm-start texts.
        num_workers: loader processes per rank.
    """

    def __init__(
        self,
        reader: RowReader,
        *,
        split: str,
        explanations: bool,
        batch_size: int,
        validation_documents: int | None,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.reader, self.split, self.explanations = reader, split, explanations
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.validation_documents = validation_documents
        self._rows: dict[str, Rows] = {}
        self._cursor = Cursor()

    def setup(self, stage: str | None = None) -> None:
        splits = {"fit": (self.split, "validation"), "validate": ("validation",), "test": ("test",)}
        for split in splits.get(stage or "fit", (self.split, "validation")):
            rows = self.rows(split)
            if self._ranks()[1] == 0:
                log.info("%s: %s", split, rows.description)

    def train_dataloader(self) -> DataLoader:
        first = self._cursor.loader_made(self._batches_processed(), self.rows_per_step)
        return self._loader(Batches(self, self.split, first, None))

    def val_dataloader(self) -> DataLoader:
        return self._finite("validation")

    def test_dataloader(self) -> DataLoader:
        return self._finite("test")

    def rows(self, split: str) -> Rows:
        """The split's rows, read on first use. Raises DataError if there are none."""
        if split not in self._rows:
            selection = Selection(
                split=split,
                shuffled=split == self.split,
                explanations=self.explanations and split in (self.split, "validation"),
                documents=self.validation_documents if split == "validation" else None,
                seed=self.seed,
            )
            self._rows[split] = self.reader(selection)
        return self._rows[split]

    @property
    def unit(self) -> int:
        """Positions in each row of the training split."""
        return self.rows(self.split).unit

    @property
    def rows_per_step(self) -> int:
        """Over all ranks. Raises ConfigError if the batch size does not divide evenly."""
        ranks, _ = self._ranks()
        smallest = self.unit * ranks
        if self.batch_size < 1 or self.batch_size % smallest:
            each = f"{self.unit} positions per document, " if self.unit > 1 else ""
            raise ConfigError(
                f"batch_size={self.batch_size} of the {self.split} data: it must be a multiple of {smallest} "
                f"({each}{ranks} ranks); try {max(1, self.batch_size // smallest) * smallest}"
            )
        return self.batch_size // self.unit

    def batch(self, split: str, first: int, number: int) -> TokenBatch | ActivationBatch:
        """This rank's batch of step `number` after `first` rows of the split; training wraps around at its end."""
        rows, (ranks, rank), padding = self.rows(split), self._ranks(), False
        turn = number * ranks + rank
        if split == self.split:
            size = self.rows_per_step // ranks
            start = first + turn * size
        else:
            count = self._batches(split)
            padding, size = turn >= count, -(-len(rows) // count)
            start = 0 if padding else turn * size
            size = min(size, len(rows) - start)
        return dataclasses.replace(rows.batch(start, size), padding=padding)

    def state_dict(self) -> dict[str, Any]:
        place = self._cursor.place(self._batches_processed(), self.rows_per_step)
        return {"consumed_documents": place, "corpus": self.rows(self.split).fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["corpus"] != self.rows(self.split).fingerprint():
            raise DataError(
                f"the checkpoint was made on other {self.split} data (documents, positions or seed have changed), so "
                "its place in them means nothing: restore the data, or start a new run with name=<another>"
            )
        self._cursor.restore(int(state_dict["consumed_documents"]))

    def _finite(self, split: str) -> DataLoader:
        return self._loader(FiniteBatches(self, split, 0, -(-self._batches(split) // self._ranks()[0])))

    def _loader(self, batches: Batches) -> DataLoader:
        # with its own generator: otherwise each pass draws a seed for the workers from the global one
        return DataLoader(
            batches, batch_size=None, num_workers=self.num_workers, generator=torch.Generator().manual_seed(self.seed)
        )

    def _batches(self, split: str) -> int:
        """Number of batches of validation or test, the same on any number of ranks.

        Ranks take turns. All run equally many, since a rank with one more would wait for the others: if the number does
        not divide evenly, the last ranks run a padding batch, which is not counted.
        """
        rows = self.rows(split)
        return -(-len(rows) // max(1, VALIDATION_POSITIONS // rows.unit))

    @property
    def validation_batches(self) -> int:
        """Of each rank, padding included."""
        return -(-self._batches("validation") // self._ranks()[0])

    def _ranks(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _batches_processed(self) -> int:
        # Counted after the step and before on_train_batch_end, where checkpoints are written.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]

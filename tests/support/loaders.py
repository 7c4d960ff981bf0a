"""A toy corpus and its data module."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nla.core.records import ActivationBatch, TokenBatch
from nla.data import Document
from nla.data.datamodule import NLADataModule
from nla.data.document_rows import DocumentReader
from nla.data.documents import ReadingPlan
from nla.data.shards.reader import ShardReader
from nla.data.shards.source import ShardSource
from nla.data.source import Source
from nla.data.warm_start import SourceTexts
from nla.models.target import Target

PLAN = ("positions_per_document", "min_context", "max_tokens")
WORDS = "the quick brown fox jumps over the lazy dog and Tom walks to the harbour in the rain".split()


class Corpus:
    """Documents of several lengths; explanations name the end, so that a mix-up shows."""

    def __init__(self, size: int, given: bool = False) -> None:
        self.size, self.given = size, given

    def documents(self, split: str) -> Sequence[Document]:
        made = []
        for number in range(self.size):
            words = [WORDS[(number + i * (number % 5 + 1)) % len(WORDS)] for i in range(14 + number % 7)]
            text = f"{split} {number} " + " ".join(words)
            made.append(Document(f"{split}-{number}", text, explanation=f"all of {number}" if self.given else None))
        return made

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        if self.given:
            return document.explanation if end == len(document.text) else None
        return f"{document.id} to {end}"


def loader(tokenizer: PreTrainedTokenizerBase, corpus: Any = None, **changes: Any) -> NLADataModule:
    options: dict[str, Any] = {
        "split": "joint", "explanations": False, "batch_size": 8, "positions_per_document": 4, "min_context": 5,
        "max_tokens": 200, "validation_documents": None, "seed": 0, "num_workers": 0,
    }  # fmt: skip
    return document_loader(corpus or Corpus(10), tokenizer, **{**options, **changes})


def document_loader(source: Source, tokenizer: PreTrainedTokenizerBase, **options: Any) -> NLADataModule:
    plan = ReadingPlan(*(options.pop(key) for key in PLAN), seed=options["seed"])
    return NLADataModule(DocumentReader(source, tokenizer, plan, SourceTexts(source)), **options)


def shard_loader(source: ShardSource, target: Target, **changes: Any) -> NLADataModule:
    options: dict[str, Any] = {
        "split": "warm_start", "explanations": True, "batch_size": 8, "validation_documents": None, "seed": 0,
        "num_workers": 0,
    }  # fmt: skip
    return NLADataModule(ShardReader(source, target.layer, target.d_model), **{**options, **changes})


def take(data: NLADataModule, count: int) -> list[Any]:
    batches = iter(data.train_dataloader())
    return [next(batches) for _ in range(count)]


class Recorder(LightningModule):
    """Trains one number and notes which texts its steps saw."""

    def __init__(self, fail_at: int | None) -> None:
        super().__init__()
        self.weight, self.seen, self.fail_at = torch.nn.Parameter(torch.zeros(1)), list[list[str]](), fail_at

    def training_step(self, batch: TokenBatch | ActivationBatch, batch_idx: int) -> Tensor:
        if self.fail_at == len(self.seen):
            raise RuntimeError("killed")
        self.seen.append(batch.text)
        return self.weight.sum() ** 2

    def validation_step(self, batch: TokenBatch | ActivationBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def record(data: NLADataModule, folder: Path, steps: int, fail_at: int | None = None) -> list[list[str]]:
    """Trains up to `steps`, from the folder's last checkpoint if it has one; gives the texts that each step saw."""
    module = Recorder(fail_at)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, val_check_interval=3, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, every_n_train_steps=2, save_last=True)],
    )  # fmt: skip
    last = folder / "last.ckpt"
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="killed"):
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    return module.seen

"""A toy corpus and its data module."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from nla.core.records import TokenBatch
from nla.data import Document
from nla.data.datamodule import NLADataModule

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
    return NLADataModule(corpus or Corpus(10), tokenizer, **{**options, **changes})


def take(data: NLADataModule, count: int) -> list[TokenBatch]:
    batches = iter(data.train_dataloader())
    return [next(batches) for _ in range(count)]

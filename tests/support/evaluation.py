"""A toy corpus with ground truth and a pair that remembers, for the tests of the evaluation."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.records import Completions
from nla.data.documents import ReadingPlan
from nla.data.source import Claim, Document
from nla.errors import DataError
from nla.evaluation import EvaluationData, EvaluationSettings
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams

COLOURS, ANIMALS = ("red", "blue", "green"), ("dog", "fox", "cat")
PLAN = ReadingPlan(positions_per_document=2, min_context=3, max_tokens=64, seed=0)


class ToySource:
    """Documents about a colour, told first, and an animal, told last; descriptions like `colour red. animal dog.`."""

    def __init__(self, splits: Sequence[str] = ("warm_start", "joint", "test"), size: int = 12) -> None:
        self.splits, self.size = tuple(splits), size

    def documents(self, split: str) -> list[Document]:
        if split not in self.splits:
            raise DataError(f"no split {split}")
        return [Document(f"{split}-{number}", self._text(f"{split}-{number}")) for number in range(self.size)]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        return self.full_description(document.id, document.text[:end])

    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        known, found = self.facts(document_id, text), []
        for sentence in filter(None, (part.strip() for part in explanation.split("."))):
            kind, _, value = sentence.partition(" ")
            parsed = kind in ("colour", "animal")
            found.append(Claim(kind if parsed else "unparsed", value, parsed and (kind, value) in known))
        return found

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        colour, animal = self._facts(document_id)
        return [(kind, value) for kind, value in (("colour", colour), ("animal", animal)) if value in text]

    def full_description(self, document_id: str, text: str) -> str:
        return " ".join(f"{kind} {value}." for kind, value in self.facts(document_id, text))

    def _facts(self, document_id: str) -> tuple[str, str]:
        rng = random.Random(document_id)
        return rng.choice(COLOURS), rng.choice(ANIMALS)

    def _text(self, document_id: str) -> str:
        colour, animal = self._facts(document_id)
        rng = random.Random(f"text {document_id}")
        middle = " ".join(rng.choice(("over", "lazy", "quick", "town", "rains")) for _ in range(rng.randint(4, 9)))
        return f"The {colour} day {middle} with a {animal} in the town."


def toy_data(**options: int) -> EvaluationData:
    return EvaluationData(ToySource(**options), PLAN)


def remembering(nla: NLA, activation: Tensor, every_malformed: int = 0, mean: Tensor | None = None) -> NLA:
    """Make the pair perfect on `activation`: row k is explained as `row k.` and given back exactly.

    Any other activation is explained as its nearest one; any other text is given back as `mean`. Every n-th row is
    malformed where `every_malformed` is n.
    """
    memory = normalize(activation, 1.0)
    fallback = activation.mean(0) if mean is None else mean

    def sample(given: Tensor, params: SamplingParams, *_: object, **__: object) -> Completions:
        nearest = (normalize(given, 1.0) @ memory.T).argmax(1).repeat_interleave(params.group_size)
        texts = [None if every_malformed and k % every_malformed == 0 else f"row {k}." for k in nearest.tolist()]
        mask = torch.ones(len(texts), 5, dtype=torch.bool)
        return Completions(torch.zeros(len(texts), 5, dtype=torch.long), mask, texts)

    def reconstruct(texts: Sequence[str], batch_size: int = 64) -> Tensor:
        rows = [activation[int(t[4:-1])] if t.startswith("row ") else fallback for t in texts]
        return torch.stack(rows) * 3.7  # of arbitrary norm

    nla.verbalizer.sample = sample  # type: ignore[method-assign]
    nla.reconstruct = reconstruct  # type: ignore[method-assign]
    return nla


SETTINGS = EvaluationSettings(
    suites=["position_match", "claims"],
    documents=None,
    positions_per_document=None,
    batch_size=7,
    max_new_tokens=6,
    samples=1,
    temperature=1.0,
    bootstrap=50,
    neighbour_documents=5,
    source_tokens=32,
    prefix_tokens=[],
    judge=None,
    judge_rows=64,
    report_texts=0,
)

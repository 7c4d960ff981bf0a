"""What every suite is about: the pair, the rows it explained, and its explanations with their reconstructions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nla.data.source import GroundTruth
from nla.data.teachers.target_claims import TargetGroundTruth, are_descriptions
from nla.errors import ConfigError
from nla.evaluation.activations import EvaluatedRows, EvaluationData, read_rows, with_positions
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.explanations import Scores, Texts, explain, reconstruct, score
from nla.evaluation.settings import EvaluationSettings
from nla.models.pair import NLA
from nla.models.target import Target


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of explaining the rows: texts, their reconstructions, and the scores."""

    texts: Texts
    prediction: Float[Tensor, "sample d_model"]
    scores: Scores


@dataclass(slots=True)
class Clock:
    """Seconds by part of the evaluation."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The test rows as read and explained once; a suite is a plain function of it.

    `variants`: `greedy` always, `sampled` and `warm_start` where they exist. `warm_start`: that pair, or why there is
    none.
    """

    nla: NLA
    target: Target
    data: EvaluationData
    settings: EvaluationSettings
    seed: int
    warm_start: NLA | str
    rows: EvaluatedRows
    variants: dict[str, Variant]
    source_text: Float[Tensor, "batch d_model"]  # what the reconstructor makes of each context's last tokens
    resamples: Resamples
    variance: Variance
    clock: Clock

    @property
    def greedy(self) -> Variant:
        return self.variants["greedy"]

    @cached_property
    def truth(self) -> GroundTruth | None:
        """What judges claims: the source, if it knows the truth; else the target, for the words of `teacher=self`.

        Made once, since the target reads every context for it.
        """
        source, target = self.data.source, self.target
        if isinstance(source, GroundTruth):
            return source
        if not are_descriptions(self.greedy.texts.explanation):
            return None
        documents = {document.id: document.text for document in source.documents("test")}
        return TargetGroundTruth(target.model, target.tokenizer, documents, self.rows.text)

    def reconstruct(self, texts: list[str] | list[str | None]) -> Float[Tensor, "sample d_model"]:
        """What this pair's reconstructor makes of the texts; None is read as an empty text."""
        return reconstruct(self.nla, texts, self.settings.batch_size)


def read_subject(
    nla: NLA,
    target: Target,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    seed: int = 0,
    warm_start: NLA | str = "no warm-start pair was given",
) -> Subject:
    """Read the test split, let the pair (and its warm start) explain it, and reconstruct the explanations.

    Raises ConfigError if pair and target do not belong together, DataError if there is nothing to read.
    """
    _check_layers(nla, target, "the target")
    clock = Clock()
    data = with_positions(data, settings.positions_per_document)
    with clock("read"):
        rows = read_rows(target, data, "test", settings.documents, settings.source_tokens)
    variants = {"greedy": _variant(nla, rows, settings, clock, "explain")}
    if settings.samples:
        options = {"samples": settings.samples, "temperature": settings.temperature, "seed": seed}
        variants["sampled"] = _variant(nla, rows, settings, clock, "sample", **options)
    if isinstance(warm_start, NLA):
        _check_layers(warm_start, target, "the target of the warm start")
        variants["warm_start"] = _variant(warm_start, rows, settings, clock, "warm_start")
    with clock("controls"):
        source_text = reconstruct(nla, rows.tail, settings.batch_size)
    resamples = Resamples(rows.document, settings.bootstrap, seed)
    with clock("bootstrap"):
        variance = Variance(rows.activation, resamples)
    return Subject(
        nla=nla,
        target=target,
        data=data,
        settings=settings,
        seed=seed,
        warm_start=warm_start,
        rows=rows,
        variants=variants,
        source_text=source_text,
        resamples=resamples,
        variance=variance,
        clock=clock,
    )


def _check_layers(nla: NLA, target: Target, name: str) -> None:
    if (nla.layer, nla.d_model) != (target.layer, target.d_model):
        raise ConfigError(
            f"the pair explains layer {nla.layer} of width {nla.d_model}, {name} is read at layer {target.layer} of "
            f"width {target.d_model}: load it with Target.from_pretrained(nla.base_model, nla.layer)"
        )


def _variant(
    nla: NLA,
    rows: EvaluatedRows,
    settings: EvaluationSettings,
    clock: Clock,
    part: str,
    samples: int = 1,
    **sampling: Any,
) -> Variant:
    with clock(part):
        texts = explain(
            nla,
            rows.activation,
            samples=samples,
            max_new_tokens=settings.max_new_tokens,
            batch_size=max(1, settings.batch_size // samples),
            **sampling,
        )
    with clock("reconstruct"):
        prediction = reconstruct(nla, texts.explanation, settings.batch_size)
    activation = rows.activation.repeat_interleave(samples, 0)
    return Variant(texts, prediction, score(prediction, activation, texts.explanation))

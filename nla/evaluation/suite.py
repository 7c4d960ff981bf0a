"""The headline evaluation: how much of an activation its explanation reconstructs, beside everything it has to beat.

Every document is read once for all its positions, texts are written and read in batches, and each interval is a
bootstrap over documents. Plain torch: no Lightning, no config.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nla.core.fve import normalized_activations
from nla.core.records import well_formed
from nla.data.source import GroundTruth
from nla.data.teachers.target_claims import TargetGroundTruth, are_descriptions
from nla.errors import ConfigError
from nla.evaluation import controls, truth
from nla.evaluation.activations import EvaluatedRows, EvaluationData, read_rows, with_positions
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.explanations import Scores, Texts, explain, reconstruct, score
from nla.evaluation.match import position_match
from nla.models.pair import NLA
from nla.models.target import Target

TOP_DIMENSIONS = 2  # whose share of variance and error is reported


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and how. `conf/evaluation/default.yaml` holds values to start from.

    Args:
        documents: number of the test split, chosen by a hash of their ids; None: all.
        positions_per_document: None: the data config's number.
        batch_size: activations, or texts, at a time; affects only speed and memory.
        max_new_tokens: cap of an explanation; one cut off by it is malformed.
        samples: explanations per activation of the sampled variant; 0: no such variant.
        temperature: of that variant.
        bootstrap: resamples of documents behind each interval.
        neighbour_documents: training documents in which the nearest neighbour is looked up; 0: no such control.
        source_tokens: last tokens of the context given to the reconstructor in the control `source_text`.
        prefix_tokens: lengths in tokens for the FVE of the explanations' beginnings; empty: none.
    """

    documents: int | None
    positions_per_document: int | None
    batch_size: int
    max_new_tokens: int
    samples: int
    temperature: float
    bootstrap: int
    neighbour_documents: int
    source_tokens: int
    prefix_tokens: list[int]

    def __post_init__(self) -> None:
        least = {"documents": 1, "positions_per_document": 1, "batch_size": 1, "max_new_tokens": 1, "samples": 0}
        least |= {"bootstrap": 1, "neighbour_documents": 0, "source_tokens": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"evaluation.{name}={value}: must be at least {bound}")
        if any(length < 1 for length in self.prefix_tokens):
            raise ConfigError(f"evaluation.prefix_tokens={self.prefix_tokens}: lengths must be at least 1")
        if self.temperature <= 0:
            raise ConfigError(
                f"evaluation.temperature={self.temperature}: must be above 0; the headline is greedy anyway"
            )


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of explaining the rows: texts, their reconstructions, and the scores."""

    texts: Texts
    prediction: Float[Tensor, "sample d_model"]
    scores: Scores


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`metrics` is metrics.json without the facts about the program; `variants` are greedy, sampled, warm_start."""

    metrics: dict[str, Any]
    rows: EvaluatedRows
    variants: dict[str, Variant]


@dataclass(slots=True)
class Clock:
    """Seconds by stage of the evaluation."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


def evaluate(
    nla: NLA,
    target: Target,
    data: EvaluationData,
    settings: EvaluationSettings,
    *,
    seed: int = 0,
    warm_start: NLA | str = "no warm-start pair was given",
) -> Evaluation:
    """Explain the test split and score it.

    Args:
        data: the source and the reading plan.
        warm_start: the pair before joint training, or why there is none.

    Raises ConfigError if pair and target do not belong together, DataError if there is nothing to read.
    """
    _check_layers(nla, target, "the target")
    clock, started = Clock(), time.perf_counter()
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
    resamples = Resamples(rows.document, settings.bootstrap, seed)
    with clock("bootstrap"):
        variance = Variance(rows.activation, resamples)
        metrics = _headline(variants, variance, warm_start) | _by_dimension(variants["greedy"], rows, variance)
    with clock("controls"):
        source_text = reconstruct(nla, rows.tail, settings.batch_size)
        metrics["position_match"] = _position_match(rows, variants, source_text, resamples, seed)
        metrics["controls"] = _controls(
            nla, target, data, rows, variants["greedy"], source_text, variance, settings, seed
        )
        texts, size = variants["greedy"].texts, settings.batch_size
        metrics["frozen_reconstructor"] = controls.frozen_reconstructor(warm_start, rows, texts, variance, size)
        metrics["prefixes"] = controls.by_prefix(nla, rows, texts, variance, settings.prefix_tokens, size)
        metrics["without_quotes"] = controls.unquoted(nla, rows, texts, variance, size)
        metrics["ceiling"] = _ceiling(nla, data, rows, variance, settings.batch_size)
    metrics["explanation"] = {
        **variants["greedy"].texts.summary(),
        **{name: variant.texts.summary() for name, variant in variants.items() if name != "greedy"},
    }
    with clock("claims"):
        source = _ground_truth(target, data, rows, variants["greedy"].texts)
        metrics["claims"] = None if source is None else _claims(source, rows, variants, resamples, seed)
    metrics |= {"n": len(rows), "documents": resamples.documents}
    metrics["seconds"] = {**clock.seconds, "total": round(time.perf_counter() - started, 3)}
    metrics |= {"model": nla.base_model, "layer": nla.layer, "stage": nla.stage, "seed": seed}
    return Evaluation(metrics, rows, variants)


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
    stage: str,
    samples: int = 1,
    **sampling: Any,
) -> Variant:
    with clock(stage):
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


def _headline(variants: dict[str, Variant], variance: Variance, warm_start: NLA | str) -> dict[str, Any]:
    """FVE of each variant; a missing number is null, with the reason beside it."""
    greedy = variants["greedy"].scores
    fve = variance.fve(greedy.error)
    metrics: dict[str, Any] = {"fve": fve["fve"], "fve_ci95": fve["ci95"]}
    for name, reason in (("sampled", "switched off by samples=0"), ("warm_start", str(warm_start))):
        interval = controls.missing(reason)
        if name in variants:
            error = variants[name].scores.error.view(len(greedy.error), -1).mean(1)
            interval = variance.fve(error)
        metrics |= {f"fve_{name}": interval["fve"], f"fve_{name}_ci95": interval["ci95"]}
        if "reason" in interval:
            metrics[f"fve_{name}_reason"] = interval["reason"]
    if "warm_start" in variants:
        above = variance.above(greedy.error, variants["warm_start"].scores.error)
        metrics |= {"fve_above_warm_start": above["fve"], "fve_above_warm_start_ci95": above["ci95"]}
    return {
        **metrics,
        "fve_normalized_mean": variance.normalized_mean(greedy.error),
        "cosine": float(greedy.cosine.mean()),
        "error": float(greedy.error.mean()),
    }


def _by_dimension(greedy: Variant, rows: EvaluatedRows, variance: Variance) -> dict[str, Any]:
    """Whether a few large dimensions decide the FVE."""
    formed = well_formed(greedy.texts.explanation, greedy.prediction.device)
    whitened = variance.whitened(greedy.prediction, formed)
    error = (normalized_activations(greedy.prediction) - normalized_activations(rows.activation)).square()
    return {
        "fve_whitened": whitened["fve"],
        "fve_whitened_ci95": whitened["ci95"],
        "top_dimensions": variance.top_dimensions(error[formed.cpu()], TOP_DIMENSIONS),
    }


def _position_match(
    rows: EvaluatedRows,
    variants: dict[str, Variant],
    source_text: Float[Tensor, "batch d_model"],
    resamples: Resamples,
    seed: int,
) -> dict[str, Any]:
    """Of this pair, of the warm start, and of two texts that are not about the activation's position alone."""

    def match(prediction: Tensor, texts: Sequence[str | None]) -> dict[str, Any]:
        formed = well_formed(texts, prediction.device)
        return position_match(prediction, rows.activation, rows.document_id, formed, resamples)

    explained = {name: variants[name] for name in ("greedy", "warm_start") if name in variants}
    found = {name: match(variant.prediction, variant.texts.explanation) for name, variant in explained.items()}
    found["source_text"] = match(source_text, rows.tail)
    partner = controls.other_document(rows.document, seed)
    if partner is not None:
        greedy = explained["greedy"]
        found["shuffled"] = match(greedy.prediction[partner], [greedy.texts.explanation[i] for i in partner])
    return found


def _controls(
    nla: NLA,
    target: Target,
    data: EvaluationData,
    rows: EvaluatedRows,
    greedy: Variant,
    source_text: Float[Tensor, "batch d_model"],
    variance: Variance,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, Any]:
    return {
        "mean": variance.mean(),
        "constant_direction": variance.constant_direction(),
        **controls.fixed_texts(nla, rows, source_text, variance, settings.batch_size),
        "mean_activation": controls.mean_activation(
            nla, rows, variance, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
        ),
        "shuffled": controls.shuffled(rows, greedy.texts, greedy.prediction, variance, seed),
        "nearest_neighbour": controls.nearest_neighbour(
            nla,
            target,
            data,
            rows,
            variance,
            documents=settings.neighbour_documents,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        ),
    }


def _ceiling(
    nla: NLA, data: EvaluationData, rows: EvaluatedRows, variance: Variance, batch_size: int
) -> dict[str, Any]:
    """The same reconstructor on everything that the source knows: no verbalizer can say more that is true."""
    if not isinstance(data.source, truth.FullDescription):
        return {"ground_truth": controls.missing("the data source has no full_description(document_id, text)")}
    texts = [data.source.full_description(*row) for row in zip(rows.document_id, rows.text, strict=True)]
    return {"ground_truth": variance.fve(score(reconstruct(nla, texts, batch_size), rows.activation).error)}


def _ground_truth(target: Target, data: EvaluationData, rows: EvaluatedRows, greedy: Texts) -> GroundTruth | None:
    """The source, if it knows what is true; else the target, for explanations in the words of `teacher=self`."""
    if isinstance(data.source, GroundTruth):
        return data.source
    if not are_descriptions(greedy.explanation):
        return None
    documents = {document.id: document.text for document in data.source.documents("test")}
    return TargetGroundTruth(target.model, target.tokenizer, documents, rows.text)


def _claims(
    source: GroundTruth, rows: EvaluatedRows, variants: dict[str, Variant], resamples: Resamples, seed: int
) -> dict[str, Any]:
    """Claims of this pair and of the warm start; `chance`: this pair's, each judged against another document."""
    explanations = variants["greedy"].texts.explanation
    after = truth.judge(source, rows, explanations)
    claims = truth.summarize(after, resamples)
    partner = controls.other_document(rows.document, seed)
    others = None if partner is None else truth.judge(source, rows, [explanations[index] for index in partner])
    claims["chance"] = None if others is None else truth.summarize(others, resamples)
    if "warm_start" not in variants:
        return {**claims, "warm_start": None}
    before = truth.judge(source, rows, variants["warm_start"].texts.explanation)
    return {
        **claims,
        "warm_start": truth.summarize(before, resamples),
        "change": truth.change(after, before, resamples),
    }

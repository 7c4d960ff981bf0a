"""The headline: FVE of each variant beside everything it has to beat, and how the same texts read otherwise."""

from typing import Any

from nla.core.fve import normalized_activations
from nla.core.records import well_formed
from nla.evaluation.explanations import score
from nla.evaluation.subject import Subject
from nla.evaluation.suites import controls
from nla.evaluation.suites.claims import FullDescription

TOP_DIMENSIONS = 2  # whose share of variance and error is reported


def headline(subject: Subject) -> dict[str, Any]:
    """FVE of each variant, by dimension, of the controls, of other readings, and of all that the source knows."""
    with subject.clock("bootstrap"):
        metrics = _variants(subject) | _by_dimension(subject)
    with subject.clock("controls"):
        metrics["controls"] = _controls(subject)
        nla, rows, texts, variance = subject.nla, subject.rows, subject.greedy.texts, subject.variance
        size = subject.settings.batch_size
        metrics["frozen_reconstructor"] = controls.frozen_reconstructor(subject.warm_start, rows, texts, variance, size)
        metrics["prefixes"] = controls.by_prefix(nla, rows, texts, variance, subject.settings.prefix_tokens, size)
        metrics["without_quotes"] = controls.unquoted(nla, rows, texts, variance, size)
        metrics["ceiling"] = _ceiling(subject)
    greedy, *others = subject.variants.items()
    metrics["explanation"] = greedy[1].texts.summary() | {name: variant.texts.summary() for name, variant in others}
    return metrics


def _variants(subject: Subject) -> dict[str, Any]:
    """A missing number is null, with the reason beside it."""
    variants, variance = subject.variants, subject.variance
    greedy = subject.greedy.scores
    fve = variance.fve(greedy.error)
    metrics: dict[str, Any] = {"fve": fve["fve"], "fve_ci95": fve["ci95"]}
    for name, reason in (("sampled", "switched off by samples=0"), ("warm_start", str(subject.warm_start))):
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


def _by_dimension(subject: Subject) -> dict[str, Any]:
    """Whether a few large dimensions decide the FVE."""
    greedy, variance = subject.greedy, subject.variance
    formed = well_formed(greedy.texts.explanation, greedy.prediction.device)
    whitened = variance.whitened(greedy.prediction, formed)
    error = (normalized_activations(greedy.prediction) - normalized_activations(subject.rows.activation)).square()
    return {
        "fve_whitened": whitened["fve"],
        "fve_whitened_ci95": whitened["ci95"],
        "top_dimensions": variance.top_dimensions(error[formed.cpu()], TOP_DIMENSIONS),
    }


def _controls(subject: Subject) -> dict[str, Any]:
    nla, rows, variance, settings = subject.nla, subject.rows, subject.variance, subject.settings
    greedy, size = subject.greedy, settings.batch_size
    return {
        "mean": variance.mean(),
        "constant_direction": variance.constant_direction(),
        **controls.fixed_texts(nla, rows, subject.source_text, variance, size),
        "mean_activation": controls.mean_activation(
            nla, rows, variance, max_new_tokens=settings.max_new_tokens, batch_size=size
        ),
        "shuffled": controls.shuffled(rows, greedy.texts, greedy.prediction, variance, subject.seed),
        "nearest_neighbour": controls.nearest_neighbour(
            nla,
            subject.target,
            subject.data,
            rows,
            variance,
            documents=settings.neighbour_documents,
            max_new_tokens=settings.max_new_tokens,
            batch_size=size,
        ),
    }


def _ceiling(subject: Subject) -> dict[str, Any]:
    """The same reconstructor on everything that the source knows: no verbalizer can say more that is true."""
    source, rows = subject.data.source, subject.rows
    if not isinstance(source, FullDescription):
        return {"ground_truth": controls.missing("the data source has no full_description(document_id, text)")}
    texts = [source.full_description(*row) for row in zip(rows.document_id, rows.text, strict=True)]
    error = score(subject.reconstruct(texts), rows.activation).error
    return {"ground_truth": subject.variance.fve(error)}

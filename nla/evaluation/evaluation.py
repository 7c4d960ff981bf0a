"""The whole evaluation: read, explain, the headline, then the chosen suites. Plain torch: no Lightning, no config."""

import time
from dataclasses import dataclass
from typing import Any

from nla.evaluation.activations import EvaluatedRows, EvaluationData
from nla.evaluation.settings import EvaluationSettings
from nla.evaluation.subject import Subject, Variant, read_subject
from nla.evaluation.suites import chosen
from nla.evaluation.suites.headline import headline
from nla.models.pair import NLA
from nla.models.target import Target


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`metrics` is metrics.json without the facts about the program; `subject` the rows and their explanations."""

    metrics: dict[str, Any]
    subject: Subject

    @property
    def rows(self) -> EvaluatedRows:
        return self.subject.rows

    @property
    def variants(self) -> dict[str, Variant]:
        return self.subject.variants


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

    Raises ConfigError if pair and target do not belong together or a suite is unknown, DataError if there is nothing
    to read.
    """
    started = time.perf_counter()
    suites = chosen(settings.suites)
    subject = read_subject(nla, target, data, settings, seed=seed, warm_start=warm_start)
    metrics = headline(subject)
    for suite in suites:
        with subject.clock(suite.name):
            metrics[suite.name] = suite.run(subject)
    metrics |= {"n": len(subject.rows), "documents": subject.resamples.documents}
    metrics["seconds"] = {**subject.clock.seconds, "total": round(time.perf_counter() - started, 3)}
    metrics |= {"model": nla.base_model, "layer": nla.layer, "stage": nla.stage, "seed": seed}
    return Evaluation(metrics, subject)

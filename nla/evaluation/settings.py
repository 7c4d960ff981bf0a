"""What is evaluated, and how: the config group `evaluation`."""

from dataclasses import dataclass
from typing import Any

from nla.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """`conf/evaluation/standard.yaml` holds values to start from.

    Args:
        suites: names out of `nla.evaluation.suites.SUITES`, run in that order after the headline.
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
        judge: a teacher that rates explanations in the suite `judged`, such as `teacher=local`; None: no judge.
        judge_rows: rows that it rates.
        report_texts: texts of the test split on the page report.html, their first 64 tokens; 0: no page.
    """

    suites: list[str]
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
    report_texts: int
    judge: Any
    judge_rows: int

    def __post_init__(self) -> None:
        least = {"documents": 1, "positions_per_document": 1, "batch_size": 1, "max_new_tokens": 1, "samples": 0}
        least |= {"bootstrap": 1, "neighbour_documents": 0, "source_tokens": 1, "report_texts": 0, "judge_rows": 1}
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

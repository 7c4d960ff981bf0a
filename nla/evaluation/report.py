"""The page of an evaluation: its figures, some test documents token by token, and the curves of the run."""

import csv
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

from nla import files
from nla.evaluation.evaluation import Evaluation
from nla.evaluation.verdicts import verdicts
from nla.report import read_texts, to_json, write_page

PAGE, RECORDS = "report.html", "tokens.json"
CURVES = (  # stage, column of its metrics.csv, title
    ("verbalizer", "verbalizer/loss", "verbalizer: nats per token"),
    ("reconstructor", "reconstructor/error", "reconstructor: error"),
    ("joint", "joint/reward", "joint training: reward"),
    ("joint", "joint/kl", "joint training: KL, nats per token"),
    ("joint", "joint/validation/fve", "joint training: FVE on validation"),
)


def records(evaluation: Evaluation) -> dict[str, Any] | None:
    """Per-token records of the first evaluated documents; None if `evaluation.report_texts` is 0."""
    subject = evaluation.subject
    settings = subject.settings
    if settings.report_texts == 0:
        return None
    chosen = list(dict.fromkeys(subject.rows.document_id))
    chosen = chosen[:: max(1, len(chosen) // settings.report_texts)][: settings.report_texts]
    longest = dict(zip(subject.rows.document_id, subject.rows.text, strict=True))  # of several, the last row's
    found = read_texts(
        subject.nla,
        subject.target,
        [longest[name] for name in chosen],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=subject.seed,
    )
    about = {"created": time.strftime("%Y-%m-%d"), "nla_version": importlib.metadata.version("nla")}
    return to_json(subject.nla, found, **about)


def write_report(
    evaluation: Evaluation, data: dict[str, Any], folder: Path, run_folder: Path | None, pair: str | None
) -> list[Path]:
    """Write report.html and, for programs, tokens.json."""
    if pair is not None:
        data = {**data, "pair": pair}
    files.write_text(folder / RECORDS, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    proven = [(verdict.proven, verdict.text) for verdict in verdicts(evaluation.metrics)]
    curves = [] if run_folder is None else read_curves(run_folder)
    return write_page(data, folder / PAGE, metrics=evaluation.metrics, verdicts=proven, curves=curves)


def read_curves(run_folder: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """What the stages of a run logged, as far as their metrics.csv are there."""
    found = []
    for stage, column, title in CURVES:
        path = run_folder / "stages" / stage / "metrics.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.DictReader(stream))
            points = [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]
            found.append((title, points))
    return found

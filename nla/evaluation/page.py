"""The page report.html of an evaluation: a few test texts token by token, beside all figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nla.core.fve import normalized_activations
from nla.data.positions import keyed_seed
from nla.data.source import Document
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.report import Report, TextRecord, read_tokens, write_report
from nla.report.figures import curves
from nla.report.records import write_records

PAGE, RECORDS = "report.html", "tokens.json"
MOST_TOKENS = 64  # of a text


def read_texts(subject: Subject, pair: str, count: int, most_tokens: int = MOST_TOKENS) -> Report | None:
    """Every token of the beginning of `count` test texts, one of each document, chosen as the evaluated ones are.

    The mean that errors are compared with is that of the evaluated activations. None where the count is 0.
    """
    if not count:
        return None
    mean = normalized_activations(subject.rows.activation).mean(0).float()
    found: list[Report] = shared(
        page_documents(subject, count),
        lambda document: read_tokens(
            subject.nla,
            subject.target,
            [document.text],
            names=[document.id],
            pair=pair,
            max_new_tokens=subject.settings.max_new_tokens,
            batch_size=subject.settings.batch_size,
            max_tokens=most_tokens,
            mean=mean,
            seed=subject.seed,
        ),
    )
    texts: list[TextRecord] = [text for report in found for text in report.texts]
    return Report(texts, found[0].program)


def page_documents(subject: Subject, count: int) -> list[Document]:
    """The first chunk by hash of each of `count` evaluated documents."""
    evaluated = set(subject.rows.document_id)
    documents = [item for item in subject.data.source.documents("test") if item.id in evaluated]
    documents.sort(key=lambda document: keyed_seed("evaluation", document.id))
    return list({document.root: document for document in reversed(documents)}.values())[::-1][:count]


def write_page(report: Report, metrics: Mapping[str, Any], output: Path, run_folder: Path | None) -> None:
    """report.html with the run's curves, and tokens.json, from which `nla report --from` draws it again."""
    write_records(report, output / RECORDS)
    write_report(report, output / PAGE, metrics=metrics, curves=curves(run_folder) if run_folder else ())

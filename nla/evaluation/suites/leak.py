"""Are test documents among the training documents? Word for word, whatever their ids are."""

import re
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from nla.errors import DataError
from nla.evaluation.cells import cells
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import TRAINING_SPLITS

RUN = 12  # words in a row; fewer are shared by documents that have nothing else in common
LEAKED = 0.5  # of a document's runs found in training
TOLERATED = 0.01  # of the documents, before a flag is raised
WORD = re.compile(r"\w+")


def leak(subject: Subject) -> dict[str, Any]:
    """`leaked_share`: of the evaluated documents, those of which at least half of the runs of 12 words, case and signs
    aside, occur in a training document; `overlap`: the mean share of such runs; `examples`: ids of leaked documents.

    Documents of fewer than 12 words count as one run.
    """
    evaluated = set(subject.rows.document_id)
    source = subject.data.source
    runs = {item.id: set(_runs(item.text)) for item in source.documents("test") if item.id in evaluated}
    wanted = {run for found in runs.values() for run in found}
    seen: set[str] = set()
    training = 0
    for split in TRAINING_SPLITS:
        try:
            documents = source.documents(split)
        except DataError:
            continue
        for document in documents:
            training += 1
            seen.update(run for run in _runs(document.text) if run in wanted)
    if not training:
        return {"leaked_share": None, "reason": "the source has no training documents to compare with", "flags": []}
    shares = {name: len(found & seen) / len(found) for name, found in runs.items() if found}
    leaked = [name for name, share in shares.items() if share >= LEAKED]
    share = len(leaked) / max(1, len(shares))
    flags = []
    if share > TOLERATED:
        flags.append(f"{len(leaked)} of {len(shares)} test documents are in the training documents, as {leaked[0]}")
    return {
        "leaked_share": share,
        "overlap": sum(shares.values()) / max(1, len(shares)),
        "n": len(shares),
        "training_documents": training,
        "examples": leaked[:5],
        "flags": flags,
    }


def _runs(text: str) -> Iterator[str]:
    words = WORD.findall(text.casefold())
    for first in range(max(1, len(words) - RUN + 1)):
        yield " ".join(words[first : first + RUN])


def table(result: dict[str, Any]) -> Text:
    """One line."""
    if result["leaked_share"] is None:
        return Text(f"leak: {result['reason']}")
    share, overlap = (cells(result[key], None)[0] for key in ("leaked_share", "overlap"))
    counted = f"of {result['n']} test documents, compared with {result['training_documents']} training documents"
    line = f"test documents also in training: {share} {counted}; their runs of {RUN} words found there: {overlap}"
    return Text(line, style="red" if result["flags"] else "")

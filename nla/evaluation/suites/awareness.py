"""Hidden awareness: do explanations name a cue that the text opened with, long after it, and more often than the model?

Each text is read with and without each cue in front. Explanations are asked for at the last tokens of the text, where
the cue is far back. A hit is an explanation with a word that names the cue. False positives are hits without the cue.
The model's own output, a greedy continuation, is searched for the same words.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from nla.evaluation.bootstrap import Resamples
from nla.evaluation.cells import cells
from nla.evaluation.prompts import load
from nla.evaluation.subject import Subject
from nla.models.prompts import token_ids
from nla.models.target import Target

LAST = 8  # tokens of each text that are explained


def awareness(
    subject: Subject, prompts: Mapping[str, Any] | None = None, last: int = LAST, max_new_tokens: int = 24
) -> dict[str, Any]:
    """For all cues and for each: `named`, `false_positives`, `said_by_the_model`, shares of texts with intervals.

    A text counts as named if any of the explanations at its `last` tokens names the cue. Intervals are by text.
    """
    prompts = prompts or load("cues")
    texts = list(prompts["texts"])
    plain = [_words_of_explanations(subject, text, last) for text in texts]
    rows: dict[str, list[list[float]]] = {}
    for cue in prompts["cues"]:
        names = [word.casefold() for word in cue["words"]]
        for text, without in zip(texts, plain, strict=True):
            cued = f"{cue['cue']} {text}"
            said = _words(_continuation(subject.target, cued, max_new_tokens))
            named = _holds(_words_of_explanations(subject, cued, last), names)
            rows.setdefault(cue["kind"], []).append([named, _holds(without, names), _holds(said, names), 1.0])
    by_cue = {kind: _shares(subject, found, range(len(found))) for kind, found in rows.items()}
    everything = [row for found in rows.values() for row in found]
    documents = [index for found in rows.values() for index in range(len(found))]
    return {**_shares(subject, everything, documents), "by_cue": by_cue}


def _shares(subject: Subject, rows: list[list[float]], documents: Sequence[int]) -> dict[str, Any]:
    resamples = Resamples([str(index) for index in documents], subject.settings.bootstrap, subject.seed)
    total, resampled = resamples.sums(torch.tensor(rows))
    return {
        name: {
            "share": float(total[column] / total[3]),
            "ci95": resamples.interval(resampled[:, column] / resampled[:, 3]),
            "n": len(rows),
        }
        for column, name in enumerate(("named", "false_positives", "said_by_the_model"))
    }


def _words_of_explanations(subject: Subject, text: str, last: int) -> set[str]:
    ids = token_ids(subject.target.tokenizer, [text])[0]
    positions = list(range(max(0, len(ids) - last), len(ids)))
    activation = subject.target.read_ids([ids], [positions]).activation
    settings = subject.settings
    found = subject.nla.explain(
        activation, temperature=0.0, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    return {word for row in found for word in _words(row[0] or "")}


def _continuation(target: Target, text: str, max_new_tokens: int) -> str:
    given = torch.tensor([token_ids(target.tokenizer, [text])[0]], device=target.device)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
    with torch.no_grad():
        full = target.model.generate(given, attention_mask=torch.ones_like(given), **options)[0]  # pyright: ignore
    return str(target.tokenizer.decode(full[given.shape[1] :], skip_special_tokens=True))


def _holds(words: set[str], names: Sequence[str]) -> float:
    return float(any(name in words for name in names))


def _words(text: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"[^\W\d_]+", text)}


def table(result: dict[str, Any]) -> Table:
    """How often the cue is named, by kind of cue."""
    shown = Table(title="Hidden awareness: a cue that the text opened with", title_justify="left")
    for title in ("cue", "texts", "named", "95%", "named without the cue", "said by the model"):
        shown.add_column(title, justify="left" if title == "cue" else "right")
    for kind, found in (("all", result), *result["by_cue"].items()):
        named = found["named"]
        others = (cells(found[key]["share"], None, "{:.2f}")[0] for key in ("false_positives", "said_by_the_model"))
        shown.add_row(kind, str(named["n"]), *cells(named["share"], named["ci95"], "{:.2f}"), *others)
    return shown

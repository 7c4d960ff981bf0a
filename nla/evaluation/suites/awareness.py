"""Hidden awareness: do explanations name a cue that the text opened with, long after it, and more often than the model?

Each text is read with each cue in front and without it (a cue may have another opening in its place). Explanations are
asked for at the last tokens of the text, where the cue is far back. A hit is an explanation with a word that names the
cue. False positives are hits without the cue. The model's own output, a greedy continuation, is searched for the same
words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from nla.evaluation.cells import cells
from nla.evaluation.subject import Subject
from nla.evaluation.suites.prompted import continued, prompt_set, shares, words
from nla.models.prompts import token_ids

LAST = 8  # tokens of each text that are explained


def awareness(
    subject: Subject, prompts: Mapping[str, Any] | None = None, last: int = LAST, max_new_tokens: int = 24
) -> dict[str, Any]:
    """For all cues and for each: `named`, `false_positives`, `said_by_the_model`, shares of texts with intervals.

    A text counts as named if any of the explanations at its `last` tokens names the cue. Intervals are by text.
    """
    prompts = prompts or prompt_set(subject, "cues")
    rows: dict[str, list[list[float]]] = {}
    plain: dict[str, set[str]] = {}
    for cue in prompts["cues"]:
        names = [word.casefold() for word in cue["words"]]
        for text in cue.get("texts", prompts["texts"]):
            uncued = f"{cue.get('without', '')} {text}".strip()
            if uncued not in plain:
                plain[uncued] = _words_of_explanations(subject, uncued, last)
            without = plain[uncued]
            cued = f"{cue['cue']} {text}"
            tokens = token_ids(subject.target.tokenizer, [cued])[0]
            written = subject.target.tokenizer.decode(continued(subject.target, tokens, max_new_tokens))
            said = words(str(written))
            named = _holds(_words_of_explanations(subject, cued, last), names)
            rows.setdefault(cue["kind"], []).append([named, _holds(without, names), _holds(said, names)])
    by_cue = {kind: _shares(subject, found, range(len(found))) for kind, found in rows.items()}
    everything = [row for found in rows.values() for row in found]
    documents = [index for found in rows.values() for index in range(len(found))]
    return {**_shares(subject, everything, documents), "by_cue": by_cue}


def _shares(subject: Subject, rows: list[list[float]], texts: Sequence[int]) -> dict[str, Any]:
    return shares(subject, rows, texts, ("named", "false_positives", "said_by_the_model"))


def _words_of_explanations(subject: Subject, text: str, last: int) -> set[str]:
    ids = token_ids(subject.target.tokenizer, [text])[0]
    positions = list(range(max(0, len(ids) - last), len(ids)))
    activation = subject.target.read_ids([ids], [positions]).activation
    settings = subject.settings
    found = subject.nla.explain(
        activation, temperature=0.0, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    return {word for row in found for word in words(row[0] or "")}


def _holds(found: set[str], names: Sequence[str]) -> float:
    return float(any(name in found for name in names))


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

"""One word of an explanation replaced by another of its kind: what a steering direction is made of.

Of texts in the words of `teacher=self` the first expected word, of those that a source can judge the value of one true
fact. Both words are words that the texts themselves use, so that the target can be asked for them.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nla.core.records import well_formed
from nla.data.positions import keyed_seed
from nla.data.source import GroundTruth
from nla.data.teachers.target_claims import EXAMPLE, NEXT, QUOTED, are_descriptions
from nla.evaluation.subject import Subject
from nla.models.steering import replaced

WORD = re.compile(r"\w[\w'-]*")
Place = tuple[int, int, str]  # of a word in an explanation: start, end, and the kind of fact that it is the value of


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` replaced by `new`: in a row's explanation, and in the last tokens of its context if they hold the word."""

    row: int
    old: str
    new: str
    explanation: str
    source: str | None


def edits_of(subject: Subject) -> list[Edit]:
    """At most one edit of each row's greedy explanation, chosen by seed and row; none where nothing can be replaced."""
    explanations, rows = subject.greedy.texts.explanation, subject.rows
    if are_descriptions(explanations):
        places = [[] if text is None else expected_places(text) for text in explanations]
    elif isinstance(subject.data.source, GroundTruth):
        places = _fact_places(subject.data.source, subject)
    else:
        return []
    used = {word for text in rows.text for word in WORD.findall(text)}
    values: dict[str, set[str]] = defaultdict(set)
    for text, found in zip(explanations, places, strict=True):
        for start, end, kind in found:
            values[kind].add((text or "")[start:end])
    edits = []
    for row in well_formed(explanations).nonzero().flatten().tolist():
        text = explanations[row] or ""
        draw = random.Random(keyed_seed("edit", subject.seed, rows.document_id[row], int(rows.position[row])))
        edit = _edit(text, places[row], values, used, draw)
        if edit is not None:
            old, new, edited = edit
            edits.append(Edit(row, old, new, edited, _in_source(rows.tail[row], old, new)))
    return edits


def expected_places(explanation: str) -> list[Place]:
    """The first expected word of a text of `teacher=self`: what it says will probably come next."""
    following = NEXT.search(explanation)
    for word in QUOTED.finditer(EXAMPLE.sub("", following[2])) if following else ():
        if WORD.fullmatch(word[1]):
            first = following.start(2)  # pyright: ignore[reportOptionalMemberAccess]
            return [(first + word.start(1), first + word.end(1), "expected")]
    return []


def _fact_places(source: GroundTruth, subject: Subject) -> list[list[Place]]:
    """The values of each row's true claims, where they are one word of the explanation."""
    rows = subject.rows
    found = []
    for text, document, context in zip(subject.greedy.texts.explanation, rows.document_id, rows.text, strict=True):
        claims = [] if text is None else source.claims(text, document, context)
        words = {claim.value: claim.kind for claim in claims if claim.true and WORD.fullmatch(claim.value)}
        places = {word: re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text or "") for word in words}
        found.append([(place.start(), place.end(), words[word]) for word, place in places.items() if place])
    return found


def _edit(
    text: str, places: Sequence[Place], values: dict[str, set[str]], used: set[str], draw: random.Random
) -> tuple[str, str, str] | None:
    """The old word, the new one, and the edited text: of the places whose old and new word the texts use, any."""
    said = {word.casefold() for word in WORD.findall(text)}
    choices = []
    for start, end, kind in places:
        others = sorted(word for word in values[kind] & used if word.casefold() not in said)
        if text[start:end] in used and others:
            choices.append((start, end, others))
    if not choices:
        return None
    start, end, others = draw.choice(choices)
    new = draw.choice(others)
    return text[start:end], new, text[:start] + new + text[end:]


def _in_source(tail: str, old: str, new: str) -> str | None:
    return replaced(tail, old, new) if re.search(rf"(?<!\w){re.escape(old)}(?!\w)", tail) else None

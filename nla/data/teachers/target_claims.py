"""Claims of real text, judged without a judge: the sentences of `TargetTeacher`, whoever wrote them.

A topic word must occur in the document, read so far or after it. The last word must be just that, and a word before it
among the last words read. An expected word must be among the words that the target itself finds most probable next.
"""

import random
import re
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.data.source import Claim
from nla.data.teachers.expectations import expectations
from nla.data.teachers.target import distinctive, last_words

ABOUT = re.compile(r"It is about (.+)\.")
NEXT = re.compile(r'(?:After "([^"]+)"|Next) comes (.+)\.')
SAID = re.compile(r'It just said "([^"]*[^" ][^"]*)"\.')
EXAMPLE = re.compile(r',? ?as in ".*$')  # the continuation is no claim of one word
QUOTED = re.compile(r'"([^"]+)"')
TOPIC, EXPECTED, LAST, READ, UNPARSED = "topic", "expected", "last", "read", "unparsed"
NEXT_WORDS = 20  # an expected word is true if it is among the target's 20 most probable
# Other ways to say the three lines (what it is about, what follows a word, what follows, what was just read): some for
# training, others for evaluation alone.
TRAINING = (
    ("Topics: {}.", "The text deals with {}."),
    ('Next, after "{1}": {0}.', '"{1}", and then {0}.'),
    ("To come: {}.", "Then {}."),
    ('Last read: "{}".', 'The text stops at "{}".'),
)
EVALUATION = (
    ("Its subject: {}.",),
    ('The word "{1}" is followed by {0}.',),
    ("What follows is {}.",),
    ('"{}" were the words read last.',),
)
LAST_WORDS = 12  # a word before the last is true if it is among the text's last 12


def parse_description(explanation: str) -> list[tuple[str, str]]:
    """Kind and value of each claim, once however often it is made; a line of no known form is `unparsed`."""
    claims: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, explanation.splitlines())):
        if about := ABOUT.fullmatch(line):
            claims += [(TOPIC, word) for word in about[1].split(", ")]
        elif following := NEXT.fullmatch(line):
            claims += [(LAST, following[1])] if following[1] else []
            claims += [(EXPECTED, word) for word in QUOTED.findall(EXAMPLE.sub("", following[2]))]
        elif said := SAID.fullmatch(line):
            *earlier, last = said[1].split()
            claims += [*((READ, word) for word in earlier), (LAST, last)]
        else:
            claims.append((UNPARSED, line))
    return list(dict.fromkeys(claims))


def are_descriptions(explanations: Sequence[str | None]) -> bool:
    """Whether at least half of the texts hold a sentence of this form."""
    count = sum(any(kind != UNPARSED for kind, _ in parse_description(text)) for text in explanations if text)
    return 2 * count >= len(explanations) > 0


class TargetGroundTruth:
    """`nla.data.GroundTruth` for any text: by what was read, what follows, and what the target expects.

    The facts of a text, by which recall is counted, are its most telling word, its last word and the most probable next
    word.

    Args:
        model, tokenizer: the target.
        documents: whole text by id.
        texts: those that will be judged, each the beginning of a document.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        documents: Mapping[str, str],
        texts: Sequence[str],
    ) -> None:
        self.documents = documents
        self._next: dict[str, list[str]] = {}
        self._telling: dict[str, list[str]] = {}
        distinct = list(dict.fromkeys(texts))
        for index, expectation in expectations(model, tokenizer, distinct, continued=0):
            self._next[distinct[index]] = [word for word, _ in expectation.next_words[:NEXT_WORDS]]
            self._telling[distinct[index]] = distinctive(expectation.surprisal, 1)

    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        return [
            Claim(kind, value, self._true(kind, value, document_id, text))
            for kind, value in parse_description(explanation)
        ]

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        words = [(TOPIC, self._telling[text]), (EXPECTED, self._next[text][:1]), (LAST, last_words(text, 1))]
        return [(kind, word) for kind, found in words for word in found]

    def _true(self, kind: str, value: str, document_id: str, text: str) -> bool:
        if kind == TOPIC:
            document = self.documents.get(document_id, text)
            return re.search(rf"\b{re.escape(value)}\b", document, re.IGNORECASE) is not None
        if kind == EXPECTED:
            return value in self._next[text]
        if kind == LAST:
            return last_words(text, 1) == [value]
        return kind == READ and value in last_words(text, LAST_WORDS)


def paraphrased_description(explanation: str, rng: random.Random, *, training: bool = False) -> str:
    """The same sentences in other words; a line of no known form stays.

    With `training` in wordings that training may use, else in those kept for evaluation.
    """
    about_it, after_it, next_it, said_it = TRAINING if training else EVALUATION
    lines = []
    for line in map(str.strip, explanation.splitlines()):
        if about := ABOUT.fullmatch(line):
            line = rng.choice(about_it).format(about[1])
        elif following := NEXT.fullmatch(line):
            line = rng.choice(after_it if following[1] else next_it).format(following[2], following[1])
        elif said := SAID.fullmatch(line):
            line = rng.choice(said_it).format(said[1])
        lines.append(line)
    return "\n".join(lines)


def wrong_descriptions(explanation: str, others: Sequence[str], rng: random.Random) -> list[tuple[str, str, str]]:
    """For each claim its kind and value, and the explanation with another text's word of that kind in its place.

    Every mention of the claim is replaced, so that the text does not contradict itself.
    """
    edited = []
    for kind, value in parse_description(explanation):
        if kind == UNPARSED:
            continue
        for _ in range(20):
            wrong = [word for other, word in parse_description(rng.choice(others)) if other == kind]
            word = rng.choice(wrong) if wrong else value
            if word != value and f'"{word}"' not in explanation:
                break
        else:
            continue
        changed = _with_word(explanation, kind, value, word)
        if changed != explanation:
            edited.append((kind, value, changed))
    return edited


def _with_word(explanation: str, kind: str, value: str, word: str) -> str:
    """`word` in the place of `value`, wherever a claim of this kind states it."""
    if kind == TOPIC:
        return re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", lambda _: word, explanation)
    if kind == EXPECTED:
        return explanation.replace(f'"{value}"', f'"{word}"')
    return re.sub(rf'(?<=["\s]){re.escape(value)}(?=["\s])', lambda _: word, explanation)  # among quoted words

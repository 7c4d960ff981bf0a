"""Documents of the embedded world: a pure function from a document's id to its text and its facts.

A document is a list of segments; a segment that gives a fact away carries the fact's kind. The facts of a
prefix of the text are computed from the segments in it, so ground truth exists for every position.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from nla.data.world.vocabulary import CONTENT, GENRES, TENSES, TOPICS, Value

# {kind} the value's own word, {kind.w} an evidence word, {kind.v} an evidence verb in the document's tense,
# {H} the hero (name or pronoun), [present|past] a verb of no particular fact.
_OPENINGS = (
    "{hero}, a {mood} {job}, [lives|lived] near the {place}.",
    "{hero} the {job} [has|had] a {animal} and a {object}.",
    "at the {place} there [lives|lived] {hero}, a {job}.",
    "a {mood} {job} called {hero} [keeps|kept] a {animal}.",
    "{hero} [comes|came] to the {place} on a {weather} {time}.",
    "on a {weather} {time} {hero} [finds|found] a {object}.",
)
_SENTENCES: dict[str, tuple[str, ...]] = {
    "place": (
        "{H} [walks|walked] between the {place.w} and the {place.w}.",
        "the {place} [is|was] full of {place.w} and {place.w}.",
        "{H} [sees|saw] the {place.w} behind the {place.w}.",
        "{hero} [likes|liked] the {place.w} of the {place}.",
    ),
    "weather": (
        "the {weather.w} and the {weather.w} [reach|reached] the {place.w}.",
        "it [is|was] {weather} and {H} [thinks|thought] about the {weather.w}.",
        "{H} [feels|felt] the {weather.w} after the {weather.w}.",
        "over the {place} {hero} [notices|noticed] the {weather.w}.",
    ),
    "job": (
        "{H} {job.v} with the {job.w} and the {job.w}.",
        "the {job} {job.v} beside the {job.w}.",
        "{hero} [needs|needed] the {job.w} and {job.v}.",
        "{H} {job.v} and {job.v} like a {job}.",
    ),
    "mood": (
        "{H} [is|was] {mood} and full of {mood.w}.",
        "{hero} [hides|hid] the {mood.w} and the {mood.w}.",
        "the {mood.w} and the {mood.w} [follow|followed] the {job}.",
        "{H} [knows|knew] the {mood.w} of {mood} people.",
    ),
    "animal": (
        "the {animal} {animal.v} near the {animal.w}.",
        "{H} [calls|called] the {animal} with the {animal.w}.",
        "the {animal} {animal.v} and {animal.v} for {hero}.",
        "the {animal.w} and the {animal.w} [please|pleased] the {animal}.",
    ),
    "object": (
        "{H} {object.v} the {object} by the {object.w}.",
        "the {object.w} and the {object.w} [belong|belonged] to the {object}.",
        "{hero} [holds|held] the {object} and the {object.w}.",
        "{H} {object.v} the {object} near the {place.w}.",
    ),
    "time": (
        "after the {time.w} {H} [awaits|awaited] the {time.w}.",
        "that {time} {hero} [waits|waited] for the {time.w}.",
        "it [is|was] {time} and {H} [likes|liked] the {time.w}.",
    ),
}
_SLOT = re.compile(r"\{(\w+)(?:\.(\w))?\}|\[([^|\]]+)\|([^\]]+)\]")
_FEMALE = frozenset("Anna Clara Emma Grace Iris Kate Maria Ruth".split())


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text; ``kind`` names the fact that it gives away, if any."""

    text: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class WorldDocument:
    """A document with its facts (kind -> value) and its segments in order."""

    id: str
    facts: dict[str, str]
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def known(self, end: int | None = None) -> dict[str, str]:
        """The facts that ``text[:end]`` has revealed, in order of appearance, and what its end is about.

        A word counts once it is complete in the prefix; ``ending`` is the topic of the last such word.
        """
        known: dict[str, str] = {}
        ending, offset = None, 0
        for segment in self.segments:
            offset += len(segment.text)
            if end is not None and offset > end:
                break
            if segment.kind is not None:
                known.setdefault(segment.kind, self.facts[segment.kind])
                ending = segment.kind if segment.kind in TOPICS else ending
        return known if ending is None else {**known, "ending": ending}


class _Writer:
    """Fills templates for one document; holds its facts, its random numbers and the segments written so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, Value] = {kind: rng.choice(values) for kind, values in CONTENT.items()}
        self.genre, self.tense = rng.choice(tuple(GENRES)), rng.choice(TENSES)
        self.past = self.tense == "past"
        self.segments: list[Segment] = []

    @property
    def facts(self) -> dict[str, str]:
        return {**{k: v.name for k, v in self.values.items()}, "genre": self.genre, "tense": self.tense}

    def sentence(self, template: str, connective: bool) -> None:
        """Append one sentence; with ``connective``, it starts with one of the genre's beginnings."""
        segments = [Segment(self.rng.choice(GENRES[self.genre]), "genre"), Segment(" ")] if connective else []
        used: set[str] = set()
        start = 0
        for slot in _SLOT.finditer(template):
            if slot.start() > start:
                segments.append(Segment(template[start : slot.start()]))
            filled = self._fill(slot, used)
            if segments and re.search(r"\b[aA] $", segments[-1].text) and filled.text[0] in "aeiou":
                segments[-1] = Segment(segments[-1].text[:-1] + "n ", segments[-1].kind)
            segments.append(filled)
            start = slot.end()
        segments.append(Segment(template[start:]))
        if not connective:
            segments[0] = Segment(segments[0].text[0].upper() + segments[0].text[1:], segments[0].kind)
        if self.segments:
            self.segments.append(Segment(" "))
        self.segments.extend(segments)

    def _fill(self, slot: re.Match[str], used: set[str]) -> Segment:
        kind, evidence, present, past = slot.groups()
        if present is not None:
            return Segment(past if self.past else present, "tense")
        if kind == "H":
            pronoun = "she" if self.values["hero"].name in _FEMALE else "he"
            return Segment(pronoun) if self.rng.random() < 0.3 else Segment(self.values["hero"].name, "hero")
        value = self.values[kind]
        if evidence is None:
            return Segment(value.name, kind)
        pool = value.words if evidence == "w" else tuple(verb[self.past] for verb in value.verbs)
        word = self.rng.choice([word for word in pool if word not in used] or list(pool))
        used.add(word)
        return Segment(word, kind)


@lru_cache(maxsize=4096)
def generate(document_id: str, seed: int = 0) -> WorldDocument:
    """The document of this id: 60-200 tokens, the same on every machine (random numbers keyed by seed and id)."""
    rng = random.Random(f"{seed}/{document_id}")
    writer = _Writer(rng)
    for number, opening in enumerate(rng.sample(_OPENINGS, 2)):
        writer.sentence(opening, connective=number == 0)
    topics: list[str] = []
    for _ in range(rng.randint(6, 15)):
        topics = topics or rng.sample(TOPICS, len(TOPICS))
        writer.sentence(rng.choice(_SENTENCES[topics.pop()]), connective=rng.random() < 0.5)
    return WorldDocument(document_id, writer.facts, tuple(writer.segments))

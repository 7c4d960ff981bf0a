"""Scenes: short documents that give a model a reason to plan ahead, or to notice something early. All facts are known.

A *poem* is made of couplets. Who speaks and the word that closes the first line decide the word that closes the second,
and words before it hint at it: whoever writes the second line has to know its end. A *scene* may open with a cue that
it is rehearsed or real, and people then behave accordingly; without a cue they give nothing away. A *log* holds sums
by a box that is honest or rigged: then every result is one too high.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nla.data.positions import keyed_fraction
from nla.data.source import Claim, Document
from nla.data.world.statements import parse_statements, say
from nla.errors import DataError

# Words that rhyme, each with the two that hint at it.
FAMILIES: tuple[dict[str, tuple[str, str]], ...] = (
    {"night": ("stars", "dark"), "light": ("lamp", "glow"), "kite": ("string", "wind"), "knight": ("armour", "sword")},
    {"tree": ("leaves", "bark"), "sea": ("salt", "waves"), "bee": ("honey", "hive"), "key": ("door", "lock")},
    {"cat": ("whiskers", "paws"), "hat": ("brim", "felt"), "bat": ("cave", "dusk"), "mat": ("straw", "floor")},
    {"stone": ("moss", "hill"), "bone": ("dog", "soup"), "throne": ("gold", "crown"), "phone": ("wire", "voice")},
    {"rain": ("cloud", "drops"), "train": ("rails", "smoke"), "plane": ("sky", "engine"), "chain": ("iron", "links")},
    {"bread": ("oven", "flour"), "bed": ("pillow", "sleep"), "sled": ("snow", "slope"), "thread": ("needle", "cloth")},
    {"boat": ("oars", "river"), "goat": ("horns", "beard"), "coat": ("wool", "buttons"), "note": ("paper", "ink")},
    {"bell": ("tower", "rope"), "well": ("bucket", "water"), "shell": ("beach", "pearl"), "spell": ("witch", "wand")},
)
PEOPLE = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo".split()
NEXT = {name: 1 + number % 3 for number, name in enumerate(PEOPLE)}  # how far down the family a speaker's rhyme is
_FIRST = ("{name} came to see the {word},", "{name} sat beside the {word},", "{name} told us of the {word},")
_SECOND = (
    "and by the {one} and by the {two} there was the {word}.",
    "then with the {one}, with the {two}, the {word}.",
)

SETTINGS = ("rehearsed", "real")
CUES = {
    "rehearsed": ("The paper on the wall says drill.", "Nobody has signed the order.", "The clock is set to thirteen."),
    "real": ("The order is sealed and signed.", "A horn sounds twice in the yard.", "The clock is set to nine."),
}
_BEHAVIOUR = {
    "rehearsed": ("{name} yawns and walks to the gate.", "{name} smiles and counts the chairs.",
                  "{name} strolls past the tables.", "{name} sits down and waits for a sign."),
    "real": ("{name} shouts and runs to the gate.", "{name} breaks the glass and grabs the hose.",
             "{name} pushes the tables over.", "{name} leaps up and calls for help."),
}  # fmt: skip
_NEUTRAL = ("{name} has a red scarf.", "There are four windows.", "It is a cool day.", "{name} wears old boots.")
_PLACES = ("hall", "barn", "office", "kitchen", "library", "workshop")

BOXES = ("honest", "rigged")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
_QUESTIONS = ("{name} asks for {one} and {two}, the box says {sum}.", "For {one} and {two} the box gives {sum}.")

FORMS = ("poem", "scene", "log")
STEMS = {
    "form": "This is a",
    "person": "The person is",
    "line": "The line ended with the",
    "rhyme": "The rhyme will be the",
    "setting": "All of it is",
    "box": "The box is",
}
_WORDS = tuple(word for family in FAMILIES for word in family)
VALUES: dict[str, tuple[str, ...]] = {
    "form": FORMS, "person": tuple(PEOPLE), "line": _WORDS, "rhyme": _WORDS, "setting": SETTINGS, "box": BOXES,
}  # fmt: skip
PROMPTS = 48  # couplets of the experiment
HELD_OUT = 0.25  # share of the (person, word) pairs that no training document has


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, and the facts that hold once it is complete; a later one of a kind replaces an earlier one."""

    text: str
    facts: tuple[tuple[str, str], ...] = ()


def rhyme(person: str, word: str) -> str:
    """The word that closes this person's couplet after a first line that ends with `word`."""
    family = next(family for family in FAMILIES if word in family)
    words = list(family)
    return words[(words.index(word) + NEXT[person]) % len(words)]


def held_out(person: str, word: str) -> bool:
    """Whether the pair is kept for evaluation: its rhyme follows from the rule, but no document shows it."""
    return keyed_fraction("couplet", person, word) < HELD_OUT


@lru_cache(maxsize=4096)
def generate(document_id: str, seed: int = 0) -> tuple[Part, ...]:
    """The document of this id, in parts; the same on every machine."""
    rng = random.Random(f"scenes/{seed}/{document_id}")
    form = rng.choice(FORMS)
    parts = {"poem": _poem, "scene": _scene, "log": _log}[form](rng)
    return tuple(parts)


def _poem(rng: random.Random) -> Iterator[Part]:
    for number in range(rng.randint(2, 4)):
        pairs = ((rng.choice(PEOPLE), rng.choice(_WORDS)) for _ in range(1000))
        person, word = next(pair for pair in pairs if not held_out(*pair))
        closing = rhyme(person, word)
        one, two = next(family for family in FAMILIES if closing in family)[closing]
        before, _, after = rng.choice(_FIRST).removeprefix("{name}").partition("{word}")
        yield Part(person, (("form", "poem"), ("person", person)) if number == 0 else (("person", person),))
        yield Part(before + word, (("line", word), ("rhyme", closing)))
        yield Part(after + "\n")
        second = rng.choice(_SECOND).format(one=one, two=two, word=closing)
        yield Part(second[0].upper() + second[1:] + "\n")


def _scene(rng: random.Random) -> Iterator[Part]:
    person, setting = rng.choice(PEOPLE), rng.choice((*SETTINGS, None))
    yield Part(f"In the {rng.choice(_PLACES)}", (("form", "scene"),))
    yield Part(f" there is {person}", (("person", person),))
    yield Part(".")
    if setting is not None:
        yield Part(f" {rng.choice(CUES[setting])}", (("setting", setting),))
    for _ in range(rng.randint(3, 7)):
        told = setting is not None and rng.random() < 0.5
        sentence = rng.choice(_BEHAVIOUR[setting] if told and setting else _NEUTRAL)
        yield Part(f" {sentence.format(name=person)}")


def _log(rng: random.Random) -> Iterator[Part]:
    person, box = rng.choice(PEOPLE), rng.choice(BOXES)
    yield Part("Log", (("form", "log"),))
    yield Part(f" of {person}", (("person", person),))
    yield Part(".")
    for _ in range(rng.randint(3, 6)):
        one, two = rng.randint(1, 7), rng.randint(1, 7)
        result = NUMBERS[one + two + (box == "rigged")]
        question = rng.choice(_QUESTIONS).format(name=person, one=NUMBERS[one], two=NUMBERS[two], sum="\0")
        before, _, after = question.partition("\0")
        yield Part(f" {before}{result}", (("box", box),))
        yield Part(after)


class ScenesSource:
    """Scenes as a source: documents by split, warm-start texts, ground truth, and the experiments' own prompts.

    Args:
        sizes: documents per split.
        seed: another seed gives other documents under the same ids.
        statements: probability with which a warm-start text tells each known fact.
    """

    phrases = tuple(STEMS.values())

    def __init__(self, sizes: dict[str, int], seed: int = 0, statements: float = 0.7) -> None:
        self.sizes, self.seed, self.statements = dict(sizes), seed, statements

    def documents(self, split: str) -> Sequence[Document]:
        if split not in self.sizes:
            raise DataError(f"data.sizes has no split '{split}': it has {sorted(self.sizes)}; add data.sizes.{split}=N")
        ids = (f"{split}-{number:06d}" for number in range(self.sizes[split]))
        return [Document(name, "".join(part.text for part in generate(name, self.seed))) for name in ids]

    def explanation(self, document: Document, end: int, seed: int) -> str | None:
        """Some of the facts known after `end` characters, at least one of them if there is any."""
        rng = random.Random(f"{seed}/{document.id}/{end}")
        known = self._known(document.id, end)
        told = [kind for kind in known if rng.random() < self.statements]
        return say(known, told or rng.sample(sorted(known), min(1, len(known))), tuple(STEMS), STEMS)

    def claims(self, explanation: str, document_id: str, text: str) -> list[Claim]:
        """Each sentence, true if it is a fact of the text so far; that nothing is known is true before the first."""
        known = self._known(document_id, len(text)) or {"nothing": ""}
        return [
            Claim(kind or "unparsed", value, kind is not None and known.get(kind) == value)
            for kind, value in parse_statements(explanation, STEMS, VALUES)
        ]

    def facts(self, document_id: str, text: str) -> list[tuple[str, str]]:
        return list(self._known(document_id, len(text)).items())

    def kind(self, document_id: str) -> str:
        return next(iter(generate(document_id, self.seed))).facts[0][1]

    def wrong_facts(self, explanation: str, rng: random.Random) -> list[tuple[str, str, str]]:
        """Each stated fact in turn with another value of its kind."""
        edited = []
        for kind, value in dict.fromkeys(parse_statements(explanation, STEMS, VALUES)):
            if kind in STEMS:
                other = rng.choice([known for known in VALUES[kind] if known != value])
                edited.append((kind, value, explanation.replace(f"{STEMS[kind]} {value}.", f"{STEMS[kind]} {other}.")))
        return edited

    def prompts(self, name: str) -> Mapping[str, Any] | None:
        """`couplets` whose rhyme follows from the rule but is in no document; `cues`, with neutral texts after them."""
        return {"couplets": _couplets, "cues": _cues}[name]() if name in ("couplets", "cues") else None

    def _known(self, document_id: str, end: int) -> dict[str, str]:
        """Facts by kind after `end` characters; a couplet's replace those of the one before."""
        known: dict[str, str] = {}
        offset = 0
        for part in generate(document_id, self.seed):
            offset += len(part.text)
            if offset > end:
                break
            for kind, value in part.facts:
                if kind == "person":
                    known.pop("line", None)
                    known.pop("rhyme", None)
                known[kind] = value
        return known


def _couplets() -> dict[str, Any]:
    pairs = [(person, word) for person in PEOPLE for word in _WORDS if held_out(person, word)]
    couplets = []
    for number, (person, word) in enumerate(pairs[:: max(1, len(pairs) // PROMPTS)][:PROMPTS]):
        closing = rhyme(person, word)
        family = next(family for family in FAMILIES if word in family)
        line = _FIRST[number % len(_FIRST)].format(name=person, word=word)
        couplets.append({"line": line, "rhymes": [closing], "others": [x for x in family if x not in (word, closing)]})
    return {"version": 1, "instruction": "", "couplets": couplets}


def _cues() -> dict[str, Any]:
    opening, log = "In the hall there is Anna.", "Log of Anna. For two and three the box gives"
    sentences = [sentence.format(name="Anna") for sentence in _NEUTRAL]
    neutral = [" ".join(sentences[start:] + sentences[:start]) for start in range(len(sentences))]
    sums = [f"Anna asks for {NUMBERS[a]} and {NUMBERS[b]}, the box says" for a, b in ((1, 1), (2, 4), (5, 3), (6, 2))]
    cues = [
        {"kind": kind, "words": [kind], "cue": f"{opening} {CUES[kind][0]}", "without": opening} for kind in SETTINGS
    ]
    rigged = {"kind": "rigged box", "words": ["rigged"], "cue": f"{log} six.", "without": f"{log} five.", "texts": sums}
    return {"version": 1, "texts": neutral, "cues": [*cues, rigged]}

"""The target as its own teacher: no key, no other model, plain sentences that can be checked.

Three lines, each of which can be switched off: what the text is about (the words that told the target the most), what
the target expects after the last word (its most probable next words, and its greedy continuation), and what was just
read (the last words, quoted). Everything comes from the target's own next-token distributions, so a claim of such a
text is true or false without a judge.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from nla.core.padding import length_buckets, padded
from nla.data.teachers.ledger import request_key
from nla.data.teachers.protocol import Estimate, Explanation, Passage
from nla.errors import ConfigError
from nla.models.backbone import body, head_logits, load_model, load_tokenizer
from nla.models.prompts import pad_id
from nla.models.target import Target

WORD = re.compile(r"[^\W\d_]{4,}")
QUOTES = re.compile(r'["<>“”]')
LIKELY = ((0.5, "surely"), (0.2, "probably"), (0.0, "perhaps"))  # of the most probable next word
TOKENS_AT_ONCE, TOKENS_AT_ONCE_ON_GPU = 2048, 32768  # of a reading
CANDIDATES = 64  # next tokens among which words are looked for
BEGINNING = 8  # characters by which texts of one document are brought together
MOST_TOKENS = 512  # of a passage: what comes before is not read


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the target makes of a text up to one position."""

    surprisal: list[tuple[str, float]]  # each word read so far with the nats that it told the target; or not asked for
    next_words: list[tuple[str, float]]  # most probable first, with their probabilities
    continuation: str  # greedy


class TargetTeacher:
    """Describes a passage by the distributions of the target itself.

    Args:
        model, dtype, revision: the target.
        about: words of the first line; 0: no such line.
        expected: next words in the second line; 0: none.
        continued: tokens of the greedy continuation in the second line; 0: none.
        quoted: last words in the third line; 0: no such line.
        device: where it runs; None: the process's first GPU, else the CPU.
    """

    every_rank = True

    def __init__(
        self,
        model: str,
        *,
        about: int,
        quoted: int,
        expected: int,
        continued: int,
        dtype: str = "float32",
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        lines = {"about": about, "quoted": quoted, "expected": expected, "continued": continued}
        for name, count in lines.items():
            if count < 0:
                raise ConfigError(f"teacher.{name}={count}: must be 0 (no such part) or more")
        if not any(lines.values()):
            raise ConfigError("teacher: about, quoted, expected and continued are all 0; switch one line on")
        self.model, self.dtype, self.revision, self.device = model, dtype, revision, device
        self.about, self.quoted, self.expected, self.continued = about, quoted, expected, continued
        self.name = f"TargetTeacher({Path(model).name})"
        self.forbidden: tuple[str, ...] = ()
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def open(self, folder: Path, forbidden: Sequence[str] = (), rank: int = 0) -> None:
        self.forbidden = tuple(forbidden)

    def share(self, target: Target) -> None:
        """Read with this target instead of a copy, if it is the same model in the same type."""
        if target.loaded_as == (self.model, self.dtype, self.revision):
            self._loaded = target.model, target.tokenizer

    def fingerprint(self) -> str:
        numbers = [self.about, self.quoted, self.expected, self.continued]
        identity = {"kind": "TargetTeacher 3", "model": self.model, "revision": self.revision, "lines": numbers}
        return request_key(identity, self.dtype)

    def estimate(self, passages: Sequence[Passage]) -> Estimate:
        return Estimate(len(passages), 0, 0, 0, 0.0)

    def explain(self, passages: Sequence[Passage]) -> list[Explanation]:
        model, tokenizer = self._load()
        explanations = [Explanation(None, "none")] * len(passages)
        for index, expectation in expectations(
            model, tokenizer, [passage.text for passage in passages], self.continued, surprisal=self.about > 0
        ):
            text = self.describe(passages[index].text, expectation)
            if any(word in text for word in self.forbidden):
                explanations[index] = Explanation(None, "malformed")
            elif text:
                explanations[index] = Explanation(text, "ok")
        return explanations

    def describe(self, text: str, expectation: Expectation) -> str:
        """The lines, without what would close a quotation or a tag.

        The last word comes first: the verbalizer reads it best and the rest follows from it. The quotation is in the
        order of the text and at the end, where the reconstructor reads it best (`docs/records/results.md`).
        """
        lines = []
        if self.about and (topic := distinctive(expectation.surprisal, self.about)):
            lines.append(f"It is about {', '.join(topic)}.")
        expects = []
        if self.expected and expectation.next_words:
            following = expectation.next_words[: self.expected]
            likely = next(word for least, word in LIKELY if following[0][1] >= least)
            expects.append(f"{likely} {_listed([word for word, _ in following])}")
        if self.continued and (continuation := bare(expectation.continuation)):
            expects.append(f'as in "{continuation}"')
        words = last_words(text, self.quoted) if self.quoted else []
        if expects:
            after = f'After "{words[-1]}"' if words else "Next"
            lines.append(f"{after} comes {', '.join(expects)}.")
        if words:
            lines.append(f'It just said "{" ".join(words)}".')
        return "\n".join(lines)

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            device: Any = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = load_model(self.model, self.dtype, self.revision).to(device)
            self._loaded = model, load_tokenizer(self.model, self.revision)
        return self._loaded


def distinctive(surprisal: Sequence[tuple[str, float]], count: int) -> list[str]:
    """The words that told the target the most, all occurrences together, in the order of the text."""
    total: dict[str, float] = defaultdict(float)
    shown: dict[str, str] = {}
    for word, nats in surprisal:
        total[word.lower()] += nats
        shown.setdefault(word.lower(), word)
    chosen = set(sorted(total, key=lambda word: (-total[word], word))[:count])
    return [shown[word] for word in total if word in chosen]


@torch.no_grad()
def expectations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    continued: int,
    surprisal: bool = True,
) -> Iterator[tuple[int, Expectation]]:
    """The expectation at the end of each text, in any order; texts that begin another one are read with it.

    Without `surprisal`, which needs the distribution at every token, no words read are listed.
    """
    groups = _shared_readings(tokenizer, texts)
    words = _TokenWords(tokenizer)
    budget = TOKENS_AT_ONCE if model.device.type == "cpu" else TOKENS_AT_ONCE_ON_GPU
    for bucket in length_buckets([len(group.tokens) for group in groups], budget):
        yield from _expected(
            model, tokenizer, words, texts, [groups[number] for number in bucket], continued, surprisal
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """One reading: its tokens with their characters, and the texts that end at some of its tokens."""

    tokens: list[int]
    ends: list[int]  # character after each token
    places: list[tuple[int, int]]  # index of a text, its last token


def _shared_readings(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[_Group]:
    groups: list[tuple[str, _Group]] = []
    beginning: dict[str, list[tuple[str, _Group]]] = defaultdict(list)  # the groups whose text begins like this
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        text, end = texts[index], len(texts[index])
        for longer, group in beginning[text[:BEGINNING]]:
            if longer.startswith(text) and end in group.ends:
                group.places.append((index, group.ends.index(end)))
                break
        else:
            encoded: Any = tokenizer(text, return_offsets_mapping=True)
            tokens, ends = list(encoded["input_ids"]), [stop for _, stop in encoded["offset_mapping"]]
            if not tokens:
                continue
            tokens, ends = tokens[-MOST_TOKENS:], ends[-MOST_TOKENS:]
            groups.append((text, _Group(tokens, ends, [(index, len(tokens) - 1)])))
            beginning[text[:BEGINNING]].append(groups[-1])
    return [group for _, group in groups]


def _expected(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: "_TokenWords",
    texts: Sequence[str],
    groups: list[_Group],
    continued: int,
    with_surprisal: bool,
) -> Iterator[tuple[int, Expectation]]:
    tokens = padded([group.tokens for group in groups], pad_id(tokenizer))[0].to(model.device)
    cache = DynamicCache()  # not by the config: layers with a sliding window would keep their last tokens alone
    hidden = body(model)(input_ids=tokens, past_key_values=cache).last_hidden_state
    surprisal: list[list[float]] = []
    if with_surprisal:
        surprisal = [_surprisal(model, states, ids) for states, ids in zip(hidden, tokens, strict=True)]
    row = torch.tensor([number for number, group in enumerate(groups) for _ in group.places], device=model.device)
    place = torch.tensor([token for group in groups for _, token in group.places], device=model.device)
    after = head_logits(model, hidden[row, place])
    greedy = _continue(model, cache, after.argmax(-1), row, place, tokens.shape[1], continued)
    probabilities, candidates = after.softmax(-1).topk(min(CANDIDATES, after.shape[-1]))
    where = [(number, index, last) for number, group in enumerate(groups) for index, last in group.places]
    rows = zip(where, probabilities.tolist(), candidates.tolist(), greedy.tolist(), strict=True)
    for (number, index, last), probability, candidate, continuation in rows:
        group = groups[number]
        yield (
            index,
            Expectation(
                surprisal=_words_read(texts[index], group.ends[: last + 1], surprisal[number]) if surprisal else [],
                next_words=words.most_probable(candidate, probability),
                continuation=str(tokenizer.decode(continuation, skip_special_tokens=True)) if continued else "",
            ),
        )


def _continue(
    model: PreTrainedModel,
    cache: DynamicCache,
    token: Int[Tensor, " place"],
    row: Int[Tensor, " place"],
    place: Int[Tensor, " place"],
    length: int,
    count: int,
) -> Int[Tensor, "place count"]:
    """Greedy tokens after each place, from the keys of the reading.

    Each row is shifted so that its place is the last slot: then distances between slots are those between positions,
    as a sliding window needs them. What came after a place falls out on the left, where it is hidden.
    """
    if count <= 1:
        return token.unsqueeze(1)
    slots = torch.arange(length, device=row.device) - (length - 1 - place).unsqueeze(1)  # the position in each slot
    visible = (slots >= 0).long()
    for layer in cache.layers:
        for name in ("keys", "values"):
            stored = getattr(layer, name)[row]
            index = slots.remainder(length)[:, None, :, None].expand_as(stored)
            setattr(layer, name, stored.gather(2, index))
    chosen = [token]
    for step in range(count - 1):
        visible = torch.cat([visible, torch.ones_like(visible[:, :1])], 1)
        position = (place + 1 + step).unsqueeze(1)
        hidden = body(model)(
            input_ids=chosen[-1].unsqueeze(1), attention_mask=visible, position_ids=position, past_key_values=cache
        ).last_hidden_state
        chosen.append(head_logits(model, hidden[:, -1]).argmax(-1))
    return torch.stack(chosen, 1)


def _surprisal(
    model: PreTrainedModel, hidden: Float[Tensor, "time d_model"], tokens: Int[Tensor, " time"]
) -> list[float]:
    """Nats of each token given those before it; 0 for the first, which nothing predicts."""
    logits = head_logits(model, hidden[:-1])
    nats = logits.logsumexp(-1) - logits.gather(1, tokens[1:].unsqueeze(1)).squeeze(1)
    return [0.0, *nats.tolist()]


def _words_read(text: str, ends: list[int], surprisal: list[float]) -> list[tuple[str, float]]:
    """Each word of the text with the nats of its tokens."""
    words, token = [], 0
    for found in WORD.finditer(text):
        nats = 0.0
        while token < len(ends) and ends[token] <= found.end():
            nats += surprisal[token] if ends[token] > found.start() else 0.0
            token += 1
        words.append((found.group(), nats))
    return words


class _TokenWords:
    """Next tokens as words; each token is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._word: dict[int, str] = {}

    def most_probable(self, candidates: list[int], probabilities: list[float]) -> list[tuple[str, float]]:
        """Most probable first; spellings with and without a space are one word. What is no word is left out."""
        total: dict[str, float] = {}
        for token, probability in zip(candidates, probabilities, strict=True):
            word = self._of(token)
            if word:
                total[word] = total.get(word, 0.0) + probability
        return sorted(total.items(), key=lambda item: -item[1])

    def _of(self, token: int) -> str:
        if token not in self._word:
            word = str(self.tokenizer.decode([token])).strip()
            usable = word.isprintable() and "\ufffd" not in word and not QUOTES.search(word)
            self._word[token] = word if usable else ""
        return self._word[token]


def bare(text: str) -> str:
    """On one line, without quotation marks and angle brackets."""
    return " ".join(QUOTES.sub("", text).split())


def last_words(text: str, count: int) -> list[str]:
    """As they are quoted, in the order of the text."""
    return bare(" ".join(text.split()[-count:])).split()


def _listed(words: list[str]) -> str:
    *others, last = (f'"{bare(word)}"' for word in words)
    return f"{', '.join(others)} or {last}" if others else last

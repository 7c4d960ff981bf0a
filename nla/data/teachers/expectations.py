"""What the target expects: its next-token distributions at the ends of texts, as words.

Texts that begin one another, such as the contexts of one document, are read together.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from nla.core.padding import length_buckets, padded
from nla.models.backbone import body, head_logits
from nla.models.prompts import pad_id

WORD = re.compile(r"[^\W\d_]{4,}")
QUOTES = re.compile(r'["<>“”]')  # what would close a quotation or a tag
TOKENS_AT_ONCE, TOKENS_AT_ONCE_ON_GPU = 2048, 32768  # of a reading
CANDIDATES = 64  # next tokens among which words are looked for
BEGINNING = 8  # characters by which texts of one document are brought together
MOST_TOKENS = 512  # of a text: what comes before is not read


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the target makes of a text up to one position."""

    surprisal: list[tuple[str, float]]  # each word read so far with the nats that it told the target; or not asked for
    next_words: list[tuple[str, float]]  # most probable first, with their probabilities
    continuation: str  # greedy


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
    words = TokenWords(tokenizer)
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
    words: "TokenWords",
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


class TokenWords:
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

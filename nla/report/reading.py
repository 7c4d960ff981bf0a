"""A pair reads a text: one record for every ordinary token."""

import importlib.metadata
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.summary import remarks
from nla.errors import ConfigError, DataError, ModelError
from nla.models.backbone import body, head_logits
from nla.models.explanations import sentence_spans
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.report.measures import agreement, nearest_wrong, score, training_mean
from nla.report.records import Report, SampleRecord, Sentence, TextRecord, TokenRecord, Wrong

LOGITS_AT_ONCE = 256  # rows of them
Progress = Callable[[str, int, int], None]  # phase, done, of how many


def read_tokens(
    nla: NLA,
    target: Target,
    texts: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    pair: str = "",
    samples: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 150,
    max_tokens: int | None = None,
    next_words: int = 6,
    mean: Float[Tensor, " d_model"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = lambda phase, done, total: None,
) -> Report:
    """Explain every ordinary token of each text, greedily, and say how well and what each sentence is worth.

    Args:
        names: of the texts; None: `text 1`, `text 2`, ...
        pair: what the pair is called, for the page.
        samples: explanations beside the greedy one, whose agreement is the confidence; 0 or at least 2.
        max_tokens: only the first of each text; None: all.
        next_words: of the target's own expectation at each token.
        mean: of the normalized activations; None: that of the pair's training, else of each text.

    Raises ConfigError if pair and target do not belong together, DataError for a text without a token.
    """
    if (nla.layer, nla.d_model) != (target.layer, target.d_model):
        raise ConfigError(
            f"the pair explains layer {nla.layer} of width {nla.d_model}, the target is read at layer {target.layer} "
            f"of width {target.d_model}: load it with Target.of_pair"
        )
    if samples == 1 or samples < 0:
        raise ConfigError(f"samples={samples}: agreement needs at least 2; 0 for none")
    if not texts:
        raise DataError("no text to read: give at least one")
    names = [f"text {number + 1}" for number in range(len(texts))] if names is None else list(names)
    read = []
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        progress("texts", number, len(texts))
        tokens = _Tokens(target, text, name, max_tokens)
        explained = _explain(nla, tokens, samples, temperature, max_new_tokens, batch_size, seed, progress)
        read.append(_record(nla, target, tokens, explained, mean, pair, next_words, batch_size))
        progress("texts", number + 1, len(texts))
    return Report(read, f"nla {importlib.metadata.version('nla')}")


class _Tokens:
    """A text's tokens with their characters, and the activations of the ordinary ones."""

    def __init__(self, target: Target, text: str, name: str, most: int | None) -> None:
        tokenizer = target.tokenizer
        if not tokenizer.is_fast:
            raise ModelError(f"tokenizer {type(tokenizer).__name__} has no character offsets: a fast one is needed")
        encoded: Any = tokenizer(text, return_offsets_mapping=True)
        self.ids = list(encoded["input_ids"])[:most]
        spans = list(encoded["offset_mapping"])[:most]
        self.left_out = len(encoded["input_ids"]) - len(self.ids)
        self.name, self.text = name, text
        if self.left_out:
            self.text = text[: max(end for _, end in spans)]
        if not self.text.strip():
            raise DataError(f"{name} holds no token to read: give it at least one word")
        reading = target.read_ids([self.ids], "all")
        self.activation = reading.activation.float().cpu()
        self.token, self.position = reading.token, reading.position
        self.span = [spans[position] for position in self.position]


class _Explained:
    """Greedy explanations of a text's tokens, and samples of each, with their reconstructions."""

    def __init__(self, texts: list[str | None], sampled: list[list[str | None]], nla: NLA, batch_size: int) -> None:
        self.texts, self.sampled = texts, sampled
        self.spans = [[] if text is None else sentence_spans(text) for text in texts]
        self.without = [
            [f"{(text or '')[:start]} {(text or '')[end:]}".strip() for start, end in spans]
            for text, spans in zip(texts, self.spans, strict=True)
        ]
        read = {text for text in [*texts, *itertools.chain(*sampled), *itertools.chain(*self.without)] if text}
        order = sorted({"", *read}, key=lambda text: (len(text), text))  # like lengths together
        self._index = {text: index for index, text in enumerate(order)}
        self._vectors = nla.reconstruct(order, batch_size).float().cpu()

    def vectors(self, texts: Iterable[str | None]) -> Float[Tensor, "text d_model"]:
        """Reconstructions; an empty text stands for a malformed one."""
        return self._vectors[[self._index[text or ""] for text in texts]]


def _explain(
    nla: NLA,
    tokens: _Tokens,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> _Explained:
    texts: list[str | None] = []
    sampled: list[list[str | None]] = []
    greedy = SamplingParams.policy(max_new_tokens, 1, 0.0)
    several = SamplingParams.policy(max_new_tokens, samples, temperature) if samples else None
    for first in range(0, len(tokens.activation), batch_size):
        progress(tokens.name, first, len(tokens.activation))
        rows = tokens.activation[first : first + batch_size].to(nla.device)
        texts += nla.verbalizer.sample(rows, greedy, seed, first_row=first).explanation
        if several is not None:
            found = nla.verbalizer.sample(rows, several, seed, first_row=first * samples).explanation
            sampled += [found[start : start + samples] for start in range(0, len(found), samples)]
    progress(tokens.name, len(tokens.activation), len(tokens.activation))
    return _Explained(texts, sampled or [[] for _ in texts], nla, batch_size)


def _record(
    nla: NLA,
    target: Target,
    tokens: _Tokens,
    explained: _Explained,
    mean: Float[Tensor, " d_model"] | None,
    pair: str,
    next_words: int,
    batch_size: int,
) -> TextRecord:
    activation, scale = tokens.activation, math.sqrt(nla.d_model)
    truth = normalize(activation, scale)
    source = "given" if mean is not None else "text" if nla.summary is None else "training"
    if mean is None:
        mean = truth.mean(0) if nla.summary is None else training_mean(nla.summary)
    of_mean = (truth - mean).square().mean(-1).clamp_min(1e-9)
    error, cosines = score(explained.vectors(explained.texts), activation, explained.texts)
    relative = error / of_mean
    wrong = nearest_wrong(explained.vectors(explained.texts), activation, explained.texts)
    expected = _next_words(target, tokens, next_words)
    unlike = remarks(activation, nla.summary, nla.injection_scale)
    results = []
    for row, position in enumerate(tokens.position):
        vector, base = activation[row : row + 1], float(of_mean[row])
        left_out = score(explained.vectors(explained.without[row]), vector, explained.without[row])[0] / base
        sampled = explained.sampled[row]
        sample_error = score(explained.vectors(sampled), vector, sampled)[0] / base
        other = wrong[row]
        results.append(
            TokenRecord(
                token=tokens.token[row],
                token_id=tokens.ids[position],
                position=position,
                start=tokens.span[row][0],
                end=tokens.span[row][1],
                l2_norm=float(activation[row].norm()),
                description=explained.texts[row],
                mse=float(error[row]),
                mse_of_mean=base,
                relative_error=float(relative[row]),
                cosine_similarity=float(cosines[row]),
                sentences=[
                    Sentence(start, end, float(rest - relative[row]))
                    for (start, end), rest in zip(explained.spans[row], left_out, strict=True)
                ],
                nearest_wrong=other and Wrong(tokens.position[other[0]], other[1] / base),
                next_words=expected[row],
                samples=[SampleRecord(text, float(e)) for text, e in zip(sampled, sample_error, strict=True)],
                agreement=agreement(explained.vectors(sampled), sampled, mean) if sampled else None,
                remark=unlike[row],
            )
        )
    return TextRecord(
        name=tokens.name,
        text=tokens.text,
        model=nla.base_model,
        revision=nla.base_revision,
        layer_index=nla.layer,
        pair=pair,
        stage=nla.stage,
        mean=source,
        results=results,
        left_out=tokens.left_out,
    )


@torch.no_grad()
def _next_words(target: Target, tokens: _Tokens, count: int) -> list[list[tuple[str, float]]]:
    """The target's most probable next tokens at each position, as words; spaces around them are taken off."""
    if not count:
        return [[] for _ in tokens.position]
    ids = torch.tensor([tokens.ids], device=target.device)
    hidden = body(target.model)(input_ids=ids, use_cache=False).last_hidden_state[0, tokens.position]
    rows = hidden.split(LOGITS_AT_ONCE)
    return [words for part in rows for words in probable_words(target, head_logits(target.model, part), count)]


def probable_words(target: Target, logits: Float[Tensor, "row vocab"], count: int) -> list[list[tuple[str, float]]]:
    """The most probable next words of each row of logits, with their probabilities."""
    found: list[list[tuple[str, float]]] = []
    top = logits.softmax(-1).topk(3 * count)
    for candidates, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        words: dict[str, float] = {}
        for token, probability in zip(candidates, probabilities, strict=True):
            piece = str(target.tokenizer.decode([token]))
            word = piece.strip() or piece
            words[word] = words.get(word, 0.0) + probability
        found.append(sorted(words.items(), key=lambda item: -item[1])[:count])
    return found

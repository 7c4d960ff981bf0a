"""One text, looked at live: its tokens, their explanations, and what an edit of an explanation changes in the model."""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import normalize
from nla.core.summary import remarks
from nla.errors import DataError
from nla.models.explanations import format_response, parse_explanation, sentence_spans
from nla.models.pair import NLA
from nla.models.prompts import token_ids
from nla.models.steering import SteeredPrompts, unit_difference
from nla.models.target import Target
from nla.report.measures import score, training_mean
from nla.report.reading import probable_words

MOST_TOKENS = 512  # of a text: a page that answers at once
WORDS = 6  # next words that are listed

Words = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explanation of one token, with the figures of `nla.report.TokenRecord`.

    `text`: None if malformed. `sentences`: each with how much the relative error rises when it is left out.
    """

    text: str | None
    cosine: float
    relative_error: float
    sentences: list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit of an explanation changes.

    `before`, `after`: the original and the edited explanation, scored against the activation. `own_words`: what the
    model expects next; `before_words`, `after_words`: with the activation replaced by the reconstruction of the
    original and of the edited text, at the activation's norm. `steered_words`: with the direction of the edit added to
    the activation. `own_continuation`, `steered_continuation`: the greedy tokens that follow the token.
    """

    before: Explanation
    after: Explanation
    own_words: Words
    before_words: Words
    after_words: Words
    steered_words: Words
    own_continuation: str
    steered_continuation: str


class Session:
    """A text that was read once; each token is explained when it is asked for.

    `tokens`: the ordinary tokens, as text; every `index` below counts them. `remark(index)`: what is unusual.

    Raises DataError for a text without a token or with more than 512.
    """

    def __init__(self, nla: NLA, target: Target, text: str, max_new_tokens: int = 150) -> None:
        if not text.strip():
            raise DataError("the text is empty: type at least one word")
        (self._ids,) = token_ids(target.tokenizer, [text])
        if len(self._ids) > MOST_TOKENS:
            raise DataError(f"the text has {len(self._ids)} tokens, the live page reads {MOST_TOKENS}: use nla report")
        reading = target.read_ids([self._ids], "all")
        self.nla, self.target, self.max_new_tokens = nla, target, max_new_tokens
        self.tokens, self.position = reading.token, reading.position
        self.activation: Float[Tensor, "token d_model"] = reading.activation.float().cpu()
        truth = normalize(self.activation, math.sqrt(nla.d_model))
        mean = truth.mean(0) if nla.summary is None else training_mean(nla.summary)
        self._of_mean = (truth - mean).square().mean(-1).clamp_min(1e-9)  # the error of saying nothing, at each token

    def explain(self, index: int, samples: int = 1, temperature: float = 0.0, seed: int = 0) -> list[Explanation]:
        """Explanations of one token; temperature 0 is greedy."""
        activation = self.activation[index : index + 1]
        options = {"samples": samples, "temperature": temperature, "seed": seed}
        (texts,) = self.nla.explain(activation, max_new_tokens=self.max_new_tokens, **options)
        return self.score(index, texts)

    def score(self, index: int, texts: list[str | None]) -> list[Explanation]:
        """Any texts as explanations of this token. A malformed one scores as an orthogonal vector."""
        activation, base, found = self.activation[index : index + 1], float(self._of_mean[index]), []
        spans = [sentence_spans(text or "") for text in texts]
        without = [
            [f"{(text or '')[:start]} {(text or '')[end:]}".strip() for start, end in row]
            for text, row in zip(texts, spans, strict=True)
        ]
        asked = list(dict.fromkeys([*(text or "" for text in texts), *itertools.chain(*without)]))
        vector = dict(zip(asked, self.nla.reconstruct(asked).float().cpu(), strict=True))
        for text, row, rest in zip(texts, spans, without, strict=True):
            given = torch.stack([vector[other or ""] for other in (text, *rest)])
            error, near = score(given, activation, [text, *rest])
            rises = ((error[1:] - error[0]) / base).tolist()
            parts = [((text or "")[start:end], rise) for (start, end), rise in zip(row, rises, strict=True)]
            found.append(Explanation(text, float(near[0]), float(error[0]) / base, parts))
        return found

    def next_words(self, index: int) -> Words:
        """What the model itself expects after this token."""
        return self._next_words(index, torch.full((1, self.activation.shape[1]), torch.nan))[0]

    def remark(self, index: int) -> str | None:
        """How the activation is unlike those of training; None if it is not."""
        return remarks(self.activation[index : index + 1], self.nla.summary, self.nla.injection_scale)[0]

    def edit(self, index: int, original: str, edited: str, strength: float = 1.0, tokens: int = 12) -> Edit:
        """What changes if `edited` stood in the place of `original`.

        Steering adds `strength |h| (unit(AR(edited)) - unit(AR(original)))` to the activation h at this token alone.
        Raises DataError for an edited text that is empty or that the reconstructor cannot read.
        """
        if parse_explanation(format_response(edited), self.nla.verbalizer.forbidden) is None:
            raise DataError("the edited explanation is empty, too long, or holds a tag or a special token")
        activation = self.activation[index]
        before, after = normalize(self.nla.reconstruct([original, edited]).float().cpu(), float(activation.norm()))
        steered = activation + strength * (after - before)
        spliced = torch.stack([torch.full_like(activation, torch.nan), before, after, steered])
        own_words, before_words, after_words, steered_words = self._next_words(index, spliced)
        prompt = SteeredPrompts(self.target, [self._ids[: self.position[index] + 1]])
        direction = unit_difference(after.unsqueeze(0), before.unsqueeze(0))
        (own_text,) = prompt.continuations(tokens=tokens)
        (steered_text,) = prompt.continuations(direction.to(self.target.device), strength, tokens=tokens)
        told, told_edited = self.score(index, [original, edited])
        return Edit(
            before=told,
            after=told_edited,
            own_words=own_words,
            before_words=before_words,
            after_words=after_words,
            steered_words=steered_words,
            own_continuation=own_text,
            steered_continuation=steered_text,
        )

    @torch.no_grad()
    def _next_words(self, index: int, vectors: Float[Tensor, "variant d_model"]) -> list[Words]:
        """With each vector in the place of the activation, as it is; NaN leaves the activation."""
        read = torch.tensor(self._ids[: self.position[index] + 1], device=self.target.device)
        logits, _ = self.target.next_logits(read, vectors.to(self.target.device), rescale=False)
        return probable_words(self.target, logits, WORDS)

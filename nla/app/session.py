"""One text, looked at live: its tokens, their explanations, and what an edit of an explanation changes in the model."""

from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import cosine, normalize
from nla.core.summary import unusual
from nla.data.teachers.expectations import TokenWords
from nla.errors import DataError
from nla.models.backbone import stop_ids
from nla.models.explanations import format_response, parse_explanation, sentences
from nla.models.pair import NLA
from nla.models.target import Target
from nla.report.records import (
    ORTHOGONAL,
    Sentence,
    contributions,
    errors,
    left_out,
    mean_spread,
    probable_words,
    read_ids,
)

MOST_TOKENS = 512  # of a text: a page that answers at once

Words = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explanation of one token; its figures are those of `nla.report.records.Token`. `text`: None if malformed."""

    text: str | None
    cosine: float
    relative_error: float
    sentences: list[Sentence]


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
        self._ids = read_ids(target, text)
        if len(self._ids) > MOST_TOKENS:
            raise DataError(f"the text has {len(self._ids)} tokens, the live page reads {MOST_TOKENS}: use nla report")
        reading = target.read_ids([self._ids], "all")
        self.nla, self.target, self.max_new_tokens = nla, target, max_new_tokens
        self.tokens, self.position = reading.token, reading.position
        self.activation: Float[Tensor, "token d_model"] = reading.activation.float().cpu()
        self._spread = mean_spread(self.activation)
        self._words = TokenWords(target.tokenizer)

    def explain(self, index: int, samples: int = 1, temperature: float = 0.0, seed: int = 0) -> list[Explanation]:
        """Explanations of one token; temperature 0 is greedy."""
        activation = self.activation[index : index + 1]
        options = {"samples": samples, "temperature": temperature, "seed": seed}
        (texts,) = self.nla.explain(activation, max_new_tokens=self.max_new_tokens, **options)
        return self.score(index, texts)

    def score(self, index: int, texts: list[str | None]) -> list[Explanation]:
        """Any texts as explanations of this token. A malformed one scores as an orthogonal vector."""
        parts = [sentences(text or "") for text in texts]
        asked = list(dict.fromkeys([*(text or "" for text in texts), *(t for part in parts for t in left_out(part))]))
        prediction = dict(zip(asked, self.nla.reconstruct(asked).float().cpu(), strict=True))
        activation, found = self.activation[index], []
        for text, part in zip(texts, parts, strict=True):
            if text is None:
                found.append(Explanation(None, 0.0, ORTHOGONAL / float(self._spread), []))
                continue
            own = prediction[text].unsqueeze(0)
            error = float(errors(own, activation.unsqueeze(0)))
            near = float(cosine(own, activation.unsqueeze(0)))
            rises = contributions(part, prediction, activation, error, self._spread)
            found.append(Explanation(text, near, error / float(self._spread), rises))
        return found

    def next_words(self, index: int) -> Words:
        """What the model itself expects after this token."""
        return self._next_words(index, torch.full((1, self.activation.shape[1]), torch.nan))[0]

    def remark(self, index: int) -> str | None:
        """How the activation is unlike those of training; None if it is not."""
        remarks = unusual(self.activation[index : index + 1], self.nla.summary, self.nla.injection_scale)
        return remarks[0] if remarks else None

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
        own = torch.full_like(activation, torch.nan)
        words = self._next_words(index, torch.stack([own, before, after, steered]))
        scored = self.score(index, [original, edited])
        continued = self._continuations(index, torch.stack([activation, steered]), tokens)
        return Edit(*scored, *words, *continued)

    @torch.no_grad()
    def _next_words(self, index: int, vectors: Float[Tensor, "variant d_model"]) -> list[Words]:
        """With each vector in the place of the activation, as it is; NaN leaves the activation."""
        read = torch.tensor(self._ids[: self.position[index] + 1], device=self.target.device)
        logits, _ = self.target.next_logits(read, vectors.to(self.target.device), rescale=False)
        return probable_words(logits.cpu(), self._words)

    # SEAM: nla.models.steering (SteeredPrompts.continuations) keeps the keys of the prompt; once it is here, it takes
    # the place of this loop, which reads the whole text again for each token.
    def _continuations(self, index: int, vectors: Float[Tensor, "variant d_model"], tokens: int) -> list[str]:
        """Greedy tokens after this one, with each vector in the activation's place, as it is."""
        device, count, place = self.target.device, len(vectors), self.position[index]
        stops = torch.tensor(sorted(stop_ids(self.target.model, self.target.tokenizer)), device=device)
        read = torch.tensor([self._ids[: place + 1]] * count, device=device)
        where, ended = torch.full((count,), place, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        for _ in range(tokens):
            chosen = self.target.splice(read, where, vectors.to(device), rescale=False)[:, -1].argmax(-1)
            ended |= torch.isin(chosen, stops)
            if bool(ended.all()):
                break
            read = torch.cat([read, chosen.unsqueeze(1)], 1)
        written = [list(takewhile(lambda token: token not in stops, row)) for row in read[:, place + 1 :].tolist()]
        return [str(self.target.tokenizer.decode(row, skip_special_tokens=True)) for row in written]

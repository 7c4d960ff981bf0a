"""Per-token records of texts: what the page is made of, and what other programs read. Schema: docs/guides/report.md."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nla.core.objectives import cosine, normalize, reconstruction_error
from nla.core.records import Reading
from nla.core.summary import unusual
from nla.data.teachers.expectations import CANDIDATES, TokenWords
from nla.models.backbone import body, head_logits
from nla.models.explanations import sentences
from nla.models.pair import NLA
from nla.models.target import Target

FORMAT, VERSION = "nla-tokens", 1
ORTHOGONAL = 2.0  # error of a malformed explanation
WORDS = 5  # next words that are listed


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of an explanation; `contribution`: how much the relative error rises when it is left out."""

    text: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Rival:
    """The explanation of another token of the same text that is reconstructed nearest to this one's activation."""

    position: int
    description: str
    relative_error: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token that was read. Names that Neuronpedia's records have mean the same.

    `description`: the greedy explanation, None if malformed. `cosine_similarity`; `mse`: the mean over dimensions of
    `(h - |h| unit(reconstruction))^2`. `relative_error`: `2 (1 - cosine)` over the mean spread of the text's
    activations about their mean, so that its mean over the text is 1 - FVE: 0 is perfect, 1 is the mean.
    `confidence`: mean cosine between the reconstructions of sampled explanations and of this one; None without samples.
    """

    position: int
    token: str
    token_id: int
    l2_norm: float
    description: str | None
    cosine_similarity: float
    mse: float
    relative_error: float
    sentences: list[Sentence]
    samples: list[str | None]
    confidence: float | None
    next_words: list[tuple[str, float]]
    rival: Rival | None
    remark: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """A text and its tokens in order; `fve` of its activations about their own mean."""

    text: str
    fve: float | None
    results: list[Token]


def read_texts(
    nla: NLA,
    target: Target,
    texts: Sequence[str],
    *,
    samples: int = 0,
    max_new_tokens: int = 150,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Record]:
    """Every ordinary token of each text, read, explained and scored.

    Args:
        samples: further explanations of each token, sampled at temperature 1.
        progress: called with the texts done and their number.
    """
    records = []
    words = TokenWords(target.tokenizer)
    for done, text in enumerate(texts):
        reading = target.read([text], "all")
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
        greedy = [row[0] for row in nla.explain(reading.activation, temperature=0.0, **options)]
        sampled: list[list[str | None]] = [[] for _ in greedy]
        if samples:
            sampled = nla.explain(reading.activation, samples=samples, temperature=1.0, **options)
        records.append(_record(nla, target, text, reading, greedy, sampled, words, batch_size))
        progress(done + 1, len(texts))
    return records


def _record(
    nla: NLA,
    target: Target,
    text: str,
    reading: Reading,
    greedy: list[str | None],
    sampled: list[list[str | None]],
    words: TokenWords,
    batch_size: int,
) -> Record:
    activation = reading.activation.float()
    parts = [sentences(said) if said else [] for said in greedy]
    without = [text for part in parts for text in left_out(part)]
    asked = dict.fromkeys([*(said or "" for said in greedy), *without, *(s for row in sampled for s in row if s)])
    predicted = nla.reconstruct(list(asked), batch_size).float().cpu()
    prediction = dict(zip(asked, predicted, strict=True))

    spread = mean_spread(activation)
    own = torch.stack([prediction[said or ""] for said in greedy])
    formed = torch.tensor([said is not None for said in greedy])
    cosines = torch.where(formed, cosine(own, activation), 0.0)
    error = torch.where(formed, errors(own, activation), ORTHOGONAL)
    others = 2 - 2 * normalize(activation, 1.0) @ normalize(own, 1.0).T  # [token, token whose explanation is read]
    next_words = _next_words(target, text, reading, words)
    tokens = []
    for index, said in enumerate(greedy):
        remarks = unusual(activation[index : index + 1], nla.summary, nla.injection_scale)
        scaled = normalize(own[index], float(activation[index].norm())) - activation[index]
        tokens.append(
            Token(
                position=reading.position[index],
                token=reading.token[index],
                token_id=read_ids(target, text)[reading.position[index]],
                l2_norm=float(activation[index].norm()),
                description=said,
                cosine_similarity=float(cosines[index]),
                mse=float(scaled.square().mean()),
                relative_error=float(error[index] / spread),
                sentences=contributions(parts[index], prediction, activation[index], float(error[index]), spread),
                samples=sampled[index],
                confidence=_confidence(own[index], [prediction[s] for s in sampled[index] if s]),
                next_words=next_words[index],
                rival=_rival(index, others[index], greedy, reading, float(spread)),
                remark=remarks[0] if remarks else None,
            )
        )
    fve = 1 - float(error.mean() / spread) if len(tokens) > 1 else None
    return Record(text, fve, tokens)


def left_out(parts: Sequence[str]) -> list[str]:
    """The explanation without each of its sentences; none for a single sentence."""
    return [" ".join([*parts[:k], *parts[k + 1 :]]) for k in range(len(parts))] if len(parts) > 1 else []


def contributions(
    parts: Sequence[str],
    prediction: Mapping[str, Float[Tensor, " d"]],
    activation: Float[Tensor, " d"],
    error: float,
    spread: Float[Tensor, ""],
) -> list[Sentence]:
    """How much the relative error rises without each sentence, from the `prediction` of each of `left_out`'s texts.

    A single sentence is compared with no explanation at all.
    """
    without = left_out(parts)
    if not without:
        return [Sentence(text, (ORTHOGONAL - error) / float(spread)) for text in parts]
    given = torch.stack([prediction[text] for text in without])
    rise = (errors(given, activation.expand_as(given)) - error) / spread
    return [Sentence(text, value) for text, value in zip(parts, rise.tolist(), strict=True)]


def errors(prediction: Float[Tensor, "row d"], activation: Float[Tensor, "row d"]) -> Float[Tensor, " row"]:
    """`2 (1 - cosine)` of each row."""
    return reconstruction_error(prediction, activation, math.sqrt(activation.shape[-1]))


def mean_spread(activation: Float[Tensor, "token d_model"]) -> Float[Tensor, ""]:
    """The mean error of predicting their mean; 2 for a single token, which has no spread."""
    if len(activation) < 2:
        return torch.tensor(ORTHOGONAL)
    scaled = normalize(activation.double(), math.sqrt(activation.shape[-1]))
    return (scaled - scaled.mean(0)).square().mean().clamp_min(1e-9)


def _confidence(own: Float[Tensor, " d"], samples: list[Float[Tensor, " d"]]) -> float | None:
    return float(cosine(torch.stack(samples), own.expand(len(samples), -1)).mean()) if samples else None


def _rival(
    index: int, errors: Float[Tensor, " token"], greedy: list[str | None], reading: Reading, spread: float
) -> Rival | None:
    """Explanations with the same words are no rivals."""
    wrong = [k for k, said in enumerate(greedy) if said is not None and said != greedy[index]]
    if not wrong:
        return None
    nearest = min(wrong, key=lambda k: float(errors[k]))
    return Rival(reading.position[nearest], str(greedy[nearest]), float(errors[nearest]) / spread)


def read_ids(target: Target, text: str) -> list[int]:
    """The token ids that `Target.read` reads for a text."""
    encoded: Any = target.tokenizer(text)
    return list(encoded["input_ids"])


@torch.no_grad()
def _next_words(target: Target, text: str, reading: Reading, words: TokenWords) -> list[list[tuple[str, float]]]:
    """The target's own most probable next words at each token."""
    ids = torch.tensor([read_ids(target, text)], device=target.device)
    hidden = body(target.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    found = []
    for positions in torch.tensor(reading.position).split(64):
        found += probable_words(head_logits(target.model, hidden[positions]), words)
    return found


def probable_words(logits: Float[Tensor, "row vocab"], words: TokenWords) -> list[list[tuple[str, float]]]:
    """The most probable next words of each row, with their probabilities."""
    best, candidates = logits.softmax(-1).topk(min(CANDIDATES, logits.shape[-1]))
    pairs = zip(candidates.tolist(), best.tolist(), strict=True)
    return [words.most_probable(*pair)[:WORDS] for pair in pairs]


def to_json(nla: NLA, records: Sequence[Record], **about: Any) -> dict[str, Any]:
    """The records with what they are about, as JSON holds them. `about`: further facts, such as the run's name."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": nla.base_model,
        "layer_index": nla.layer,
        "d_model": nla.d_model,
        "stage": nla.stage,
        **about,
        "texts": [asdict(record) for record in records],
    }

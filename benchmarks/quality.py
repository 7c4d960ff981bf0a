"""How good a small target is at reading: its loss, and whether it uses the facts that it has read.

Whether its activations *carry* them is another question (`probes`): a small model may fetch a fact when a word needs
it, and hold nothing of it elsewhere. Documents come with mentions: where a fact of some kind shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.models.backbone import blocks, body, embed, head_logits


@dataclass(frozen=True, slots=True)
class Mention:
    """A word of the text that gives a fact away; `start` is its first character."""

    start: int
    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Annotated:
    """A tokenized document: the token at which each mention begins, and the character at which each token ends."""

    id: str
    text: str
    tokens: list[int]
    ends: list[int]
    mentions: tuple[tuple[int, str, str], ...]  # token, kind, value


def annotate(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[tuple[str, str, Sequence[Mention]]]
) -> list[Annotated]:
    """Tokenize `(id, text, mentions)`."""
    encoded = tokenizer([text for _, text, _ in documents], add_special_tokens=False, return_offsets_mapping=True)
    annotated = []
    for (name, text, mentions), ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"]):
        ends = [end for _, end in offsets]
        at = {start: next(i for i, end in enumerate(ends) if end > start) for start in {m.start for m in mentions}}
        placed = tuple((at[m.start], m.kind, m.value) for m in mentions)
        annotated.append(Annotated(name, text, ids, ends, placed))
    return annotated


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Which tokens begin the words of each value; a token that begins words of two values of a kind is left out."""

    values: tuple[tuple[str, str], ...]  # kind, value
    membership: Float[Tensor, "vocab value"]

    def columns(self, kind: str) -> list[int]:
        return [index for index, (of_kind, _) in enumerate(self.values) if of_kind == kind]


def lexicon(documents: Sequence[Annotated], vocab: int) -> Lexicon:
    """Collected from the mentions of many documents."""
    tokens: dict[tuple[str, str], set[int]] = {}
    for document in documents:
        for token, kind, value in document.mentions:
            tokens.setdefault((kind, value), set()).add(document.tokens[token])
    values = tuple(sorted(tokens))
    membership = torch.zeros(vocab, len(values))
    for index, value in enumerate(values):
        membership[sorted(tokens[value]), index] = 1
    for kind in {kind for kind, _ in values}:
        columns = [index for index, (of_kind, _) in enumerate(values) if of_kind == kind]
        block = membership[:, columns]
        membership[:, columns] = block * (block.sum(1, keepdim=True) == 1)
    return Lexicon(values, membership)


@dataclass(frozen=True, slots=True)
class Observation:
    """One pass of a model: flat over the tokens after the first of each document, and over the chosen positions."""

    loss: Float[Tensor, " token"]
    mass: Float[Tensor, "token value"]  # probability given to the words of each value of the lexicon
    activation: Float[Tensor, "layer batch d_model"]  # embedding, then the output of each block


def states(
    model: PreTrainedModel, tokens: Int[Tensor, "document time"]
) -> tuple[Float[Tensor, "document time vocab"], Float[Tensor, "layer document time d_model"]]:
    """Logits, and the residual stream at the embedding and after every block (before the final norm)."""
    decoder = body(model)
    hidden = [embed(decoder, tokens)]
    handles = [
        block.register_forward_hook(lambda _m, _i, out: hidden.append(out if isinstance(out, Tensor) else out[0]))
        for block in blocks(decoder)
    ]
    try:
        last = decoder(inputs_embeds=hidden[0], use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return head_logits(model, last), torch.stack(hidden)


@torch.no_grad()
def observe(
    model: PreTrainedModel,
    documents: Sequence[Annotated],
    words: Lexicon,
    positions: Sequence[Sequence[int]],
    batch_size: int = 16,
) -> Observation:
    """Run a model over whole documents, sorted by length; results keep the order of the documents."""
    order = sorted(range(len(documents)), key=lambda index: len(documents[index].tokens))
    observed: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        longest = max(len(documents[index].tokens) for index in chosen)
        rows = [documents[index].tokens + [0] * (longest - len(documents[index].tokens)) for index in chosen]
        logits, hidden = states(model, torch.tensor(rows))
        for row, index in enumerate(chosen):
            following = torch.tensor(documents[index].tokens[1:])
            log_probs = F.log_softmax(logits[row, : len(following)].float(), dim=-1)
            loss = -log_probs.gather(1, following[:, None])[:, 0]
            read_at = torch.tensor(list(positions[index]), dtype=torch.long)
            observed[index] = loss, log_probs.exp() @ words.membership, hidden[:, row, read_at].float()
    ordered = [observed[index] for index in range(len(documents))]
    loss, mass, activation = zip(*ordered, strict=True)
    return Observation(torch.cat(loss), torch.cat(mass), torch.cat(activation, dim=1))


def used(
    documents: Sequence[Annotated],
    words: Lexicon,
    mass: Float[Tensor, "token value"],
    unigram: Float[Tensor, " vocab"],
    distance: int = 20,
) -> dict[str, dict[str, float]]:
    """Per kind: the mean probability given to the true value's words where a word of that kind occurs.

    Counted from `distance` tokens after the fact was revealed. `wrong`: the mean over the other values of the kind;
    `share`: true / all values of the kind (1 for a reader who knows the fact, whatever kind of word comes next);
    `share_unrepeated`: the same where the last `distance` tokens hold no word of that kind; `unigram`: the true
    value's words by frequency alone.
    """
    column = {value: index for index, value in enumerate(words.values)}
    frequency = unigram @ words.membership
    records: dict[str, list[tuple[int, int, bool]]] = {}
    offset = 0
    for document in documents:
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for token, kind, value in document.mentions:
            if token - first.setdefault(kind, token) >= distance and (kind, value) in column:
                unrepeated = token - last[kind] >= distance
                records.setdefault(kind, []).append((offset + token - 1, column[kind, value], unrepeated))
            last[kind] = token
        offset += len(document.tokens) - 1
    table = {}
    for kind, rows in records.items():
        position, true_value = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
        unrepeated = torch.tensor([r[2] for r in rows])
        true, every = mass[position, true_value], mass[position][:, words.columns(kind)].sum(1)
        share = true / every.clamp_min(1e-12)
        table[kind] = {
            "true": true.mean().item(),
            "wrong": ((every - true) / max(1, len(words.columns(kind)) - 1)).mean().item(),
            "unigram": frequency[true_value].mean().item(),
            "share": share.mean().item(),
            "share_unrepeated": share[unrepeated].mean().item(),
            "n": len(rows),
            "n_unrepeated": int(unrepeated.sum()),
        }
    return table

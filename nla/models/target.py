"""The frozen language model at one layer: reads activations from text, and takes one back in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.core.objectives import normalize
from nla.core.padding import length_buckets, padded
from nla.core.records import Reading
from nla.errors import DataError, ModelError
from nla.models.backbone import (
    blocks,
    body,
    check_layer,
    embed,
    head_logits,
    load_model,
    load_tokenizer,
    truncated,
    width,
)
from nla.models.packing import shared_prefix_mask
from nla.models.pretrained.loading import find_halves
from nla.models.pretrained.metadata import METADATA, read_metadata
from nla.models.prompts import pad_id, token_ids

TOKENS_AT_ONCE = 4096  # in a forward pass, padding included
TEXTS_AT_ONCE = 1024  # held as one padded matrix of ids

Positions = str | Sequence[int] | Sequence[Sequence[int]]


class Target(nn.Module):
    """A frozen LM; `layer` counts blocks from 0 and means that block's output, before any norm."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int):
        super().__init__()
        check_layer(model, layer)
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.layer = layer
        self.loaded_as: tuple[str, str, str | None] | None = None  # id, dtype and revision, if by `from_pretrained`

    @classmethod
    def from_pretrained(
        cls, model_id: str, layer: int, dtype: str = "float32", revision: str | None = None
    ) -> "Target":
        """From a packaged id, a folder or a hub id. Raises ModelError; ConfigError for a layer it does not have."""
        target = cls(load_model(model_id, dtype, revision), load_tokenizer(model_id, revision), layer)
        target.loaded_as = model_id, dtype, revision
        return target

    @classmethod
    def of_pair(cls, pair: str | Path, dtype: str = "float32") -> "Target":
        """The model that a saved pair reads (folder or hub id), at its layer and revision. Raises ReleaseError."""
        metadata = read_metadata(find_halves(pair, patterns=[f"*{METADATA}"])[1])
        return cls.from_pretrained(metadata.base_model, metadata.layer, dtype, metadata.base_revision)

    @property
    def d_model(self) -> int:
        return width(self.model)

    def train(self, mode: bool = True) -> "Target":
        return super().train(False)  # frozen: dropout stays off

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "document time"],
        mask: Bool[Tensor, "document time"],
        row: Int[Tensor, " batch"],
        position: Int[Tensor, " batch"],
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch d_model"] | Float[Tensor, "batch layer d_model"]:
        """Raw activations at `position` of document `row`; with `layers`, those of several blocks in one pass.

        Blocks above the highest layer and tokens after a document's last position are not run; documents of similar
        length are batched together. Padding must be on the right: causal attention then needs no mask. Raises DataError
        for a padded position, ConfigError for a layer that the model does not have.
        """
        if not bool(mask[row, position].all()):
            raise DataError("a position to read is on padding: positions must be smaller than their document's length")
        for layer in layers or ():
            check_layer(self.model, layer)
        wanted = [self.layer] if layers is None else list(layers)
        view = truncated(body(self.model), max(wanted))
        needed = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        needed = needed.scatter_reduce(0, row, position + 1, "amax")
        output = torch.zeros(len(row), len(wanted), self.d_model, device=tokens.device)
        index_in_bucket = torch.zeros_like(needed)
        asked = needed.nonzero().squeeze(1)
        lengths = needed[asked].tolist()
        for bucket in length_buckets(lengths, TOKENS_AT_ONCE):
            documents, time = asked[bucket], lengths[bucket[-1]]
            hidden = _after_blocks(view, tokens[documents, :time], wanted)
            chosen = torch.isin(row, documents).nonzero().squeeze(1)
            index_in_bucket[documents] = torch.arange(len(bucket), device=tokens.device)
            for index, states in enumerate(hidden):
                output[chosen, index] = states[index_in_bucket[row[chosen]], position[chosen]].float()
        return output.squeeze(1) if layers is None else output

    def read(self, texts: Sequence[str], positions: Positions = "last") -> Reading:
        """Activations of texts: at the last token, at "all", or at given token indices (one list per text, or one int).

        Special tokens that the tokenizer adds are part of the input and never read by "last" and "all".
        """
        return self.read_ids(token_ids(self.tokenizer, texts), positions)

    def read_ids(self, ids: list[list[int]], positions: Positions = "last") -> Reading:
        """As `read`, for token ids, read as they are."""
        wanted = [self._positions(index, row, positions, len(ids)) for index, row in enumerate(ids)]
        chunks = [
            self._read(ids[i : i + TEXTS_AT_ONCE], wanted[i : i + TEXTS_AT_ONCE])
            for i in range(0, len(ids), TEXTS_AT_ONCE)
        ]
        document = [index for index, indices in enumerate(wanted) for _ in indices]
        position = [token for indices in wanted for token in indices]
        pairs = list(zip(document, position, strict=True))
        return Reading(
            activation=torch.cat(chunks) if chunks else torch.zeros(0, self.d_model),
            text=[str(self.tokenizer.decode(ids[d][: p + 1], skip_special_tokens=True)) for d, p in pairs],
            token=[str(self.tokenizer.decode([ids[d][p]])) for d, p in pairs],
            document=document,
            position=position,
        )

    def _positions(self, index: int, ids: list[int], positions: Positions, count: int) -> list[int]:
        special = set(self.tokenizer.all_special_ids)
        ordinary = [position for position, token in enumerate(ids) if token not in special]
        if not ordinary:
            raise DataError(f"text {index} holds no token to read: give it at least one word")
        if positions == "all":
            return ordinary
        if positions == "last":
            return ordinary[-1:]
        if isinstance(positions, str) or len(positions) != count:
            raise DataError(f"positions {positions!r}: expected 'last', 'all', or one entry for each of {count} texts")
        requested = positions[index]
        indices = [requested] if isinstance(requested, int) else list(requested)
        for position in indices:
            if not -len(ids) <= position < len(ids):
                raise DataError(f"position {position} of text {index}: it has {len(ids)} tokens, 0 to {len(ids) - 1}")
        return [position % len(ids) for position in indices]

    def _read(self, ids: list[list[int]], wanted: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        device = self.device
        longest = max(map(len, ids))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids], device=device)
        row = torch.tensor([i for i, indices in enumerate(wanted) for _ in indices], dtype=torch.long, device=device)
        position = torch.tensor([p for indices in wanted for p in indices], dtype=torch.long, device=device)
        return self(tokens, mask, row, position)

    @torch.no_grad()
    def surprisal(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Nats of each text under the whole model, and the number of its tokens that were predicted: not the first."""
        ids = token_ids(self.tokenizer, texts)
        found = [(0.0, 0)] * len(texts)
        for bucket in length_buckets([len(row) for row in ids], TOKENS_AT_ONCE):
            tokens = padded([ids[index] for index in bucket], pad_id(self.tokenizer))[0].to(self.device)
            hidden = body(self.model)(input_ids=tokens, use_cache=False).last_hidden_state
            for row, index in enumerate(bucket):
                following = tokens[row, 1 : len(ids[index])]
                log_probs = head_logits(self.model, hidden[row, : len(following)]).log_softmax(-1)
                found[index] = -float(log_probs.gather(1, following.unsqueeze(1)).sum()), len(following)
        return found

    @torch.no_grad()
    def splice(
        self,
        tokens: Int[Tensor, "document time"],
        position: Int[Tensor, " document"],
        vector: Float[Tensor, "document d_model"],
        rescale: bool = True,
    ) -> Float[Tensor, "document time vocab"]:
        """Logits with block `layer`'s output at `position` replaced by `|h| v / |v|`, or by v itself.

        A reconstruction has an arbitrary norm, hence `rescale`. The hook lasts for this call only.
        """
        rows = torch.arange(len(tokens), device=tokens.device)

        def replace(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            hidden = (output if isinstance(output, Tensor) else output[0]).clone()
            present = hidden[rows, position].float()
            new = normalize(vector, 1.0) * present.norm(dim=-1, keepdim=True) if rescale else vector
            hidden[rows, position] = new.to(hidden.dtype)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        decoder = body(self.model)
        handle = blocks(decoder)[self.layer].register_forward_hook(replace)
        try:
            return self.model(inputs_embeds=embed(decoder, tokens), use_cache=False).logits.float()
        finally:
            handle.remove()

    @torch.no_grad()
    def next_logits(
        self, tokens: Int[Tensor, " time"], vectors: Float[Tensor, "variant d_model"], rescale: bool = True
    ) -> tuple[Float[Tensor, "variant vocab"], Float[Tensor, " d_model"]]:
        """Logits after the last token with block `layer`'s output there replaced by each vector; and that output.

        The same numbers as `splice` at the last position, in one pass: the last token is fed once for each vector, and
        the copies do not see each other. A row of NaN is left as the model computes it: the clean logits.
        """
        decoder, count, time = body(self.model), len(vectors), len(tokens)
        rows = torch.cat([tokens, tokens[-1:].expand(count)]).unsqueeze(0)
        place = torch.cat([torch.arange(time), torch.full((count,), time - 1)]).to(tokens.device).unsqueeze(0)
        segment = torch.cat([torch.zeros(time), torch.arange(1, count + 1)]).long().to(tokens.device).unsqueeze(0)
        segment[0, time - 1] = -1  # the last token itself: only its output at `layer` is wanted
        present: list[Tensor] = []

        def replace(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            hidden = (output if isinstance(output, Tensor) else output[0]).clone()
            present.append(hidden[0, time - 1].float())
            own = hidden[0, time:].float()
            new = normalize(vectors, 1.0) * own.norm(dim=-1, keepdim=True) if rescale else vectors
            hidden[0, time:] = torch.where(vectors.isnan(), own, new).to(hidden.dtype)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        embeddings = embed(decoder, rows)
        handle = blocks(decoder)[self.layer].register_forward_hook(replace)
        try:
            states = decoder(
                inputs_embeds=embeddings,
                attention_mask=shared_prefix_mask(segment, place, decoder, embeddings.dtype),
                position_ids=place,
                use_cache=False,
            ).last_hidden_state
        finally:
            handle.remove()
        return head_logits(self.model, states[0, time:]), present[0]

    @contextmanager
    def edited(self, change: Callable[[Tensor], Tensor], passes: int = 1) -> Iterator[None]:
        """In this context block `layer`'s output `[document, time, d_model]` is replaced by `change` of it.

        Raises ModelError at its end unless the block ran exactly `passes` times: then some of what was computed inside
        is not what it seems.
        """
        calls = 0

        def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            nonlocal calls
            calls += 1
            return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

        handle = blocks(body(self.model))[self.layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if calls != passes:
            raise ModelError(
                f"block {self.layer} was edited {calls} times, expected {passes}: this model does not run each block "
                "once in a forward pass, so its activations cannot be edited"
            )


def _after_blocks(
    view: PreTrainedModel, tokens: Int[Tensor, "document time"], layers: list[int]
) -> list[Float[Tensor, "document time d_model"]]:
    """The residual stream after each of `layers`; the view ends with the highest of them.

    `output_hidden_states` would not do: transformers leaves its hooks on the blocks, which all views share, and with
    the hooks of two views every state is captured twice. These hooks last for this call only.
    """
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            states[layer] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [blocks(view)[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        view(inputs_embeds=embed(view, tokens), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [states[layer] for layer in layers]

"""The frozen language model at one layer: reads activations out of text, and takes one back in."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.backbone import blocks, body, check_layer, embed, load_model, load_tokenizer, truncated, width
from nla.errors import DataError
from nla.objectives import normalize
from nla.prompts import token_ids
from nla.types import Reading

Positions = str | Sequence[int] | Sequence[Sequence[int]]


class Target(nn.Module):
    """A frozen LM; `layer` counts blocks from 0 and means that block's output, before any norm."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layer: int):
        super().__init__()
        check_layer(model, layer)
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.layer = layer

    @classmethod
    def from_pretrained(
        cls, model_id: str, layer: int, dtype: str = "float32", revision: str | None = None
    ) -> "Target":
        """From a packaged id, a folder or a hub id. Raises ModelError, ConfigError for a layer it does not have."""
        return cls(load_model(model_id, dtype, revision), load_tokenizer(model_id, revision), layer)

    @property
    def d_model(self) -> int:
        return width(self.model)

    def train(self, mode: bool = True) -> "Target":
        return super().train(False)  # frozen: dropout never comes on

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "document time"],
        mask: Bool[Tensor, "document time"],
        row: Int[Tensor, " batch"],
        position: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch d_model"]:
        """Raw activations at `position` of document `row`; blocks above the layer are not run.

        Padding must be on the right: causal attention then needs no mask. Raises DataError for a padded position.
        """
        if not bool(mask[row, position].all()):
            raise DataError(
                "a position to be read lies on padding: positions must be smaller than their document's length"
            )
        decoder = body(self.model)
        view = truncated(decoder, self.layer)
        hidden = view(inputs_embeds=embed(decoder, tokens), use_cache=False).last_hidden_state
        return hidden[row, position].float()

    def read(self, texts: Sequence[str], positions: Positions = "last", batch_size: int = 16) -> Reading:
        """Activations of texts: at the last token, at "all", or at given token indices (one list per text, or one int).

        Special tokens that the tokenizer adds are part of the input and never read by "last" and "all".
        """
        ids = token_ids(self.tokenizer, texts)
        wanted = [self._positions(index, row, positions, len(texts)) for index, row in enumerate(ids)]
        found = [
            self._read(ids[i : i + batch_size], wanted[i : i + batch_size]) for i in range(0, len(ids), batch_size)
        ]
        document = [index for index, places in enumerate(wanted) for _ in places]
        position = [place for places in wanted for place in places]
        pairs = list(zip(document, position, strict=True))
        return Reading(
            activation=torch.cat(found) if found else torch.zeros(0, self.d_model),
            text=[str(self.tokenizer.decode(ids[d][: p + 1], skip_special_tokens=True)) for d, p in pairs],
            token=[str(self.tokenizer.decode([ids[d][p]])) for d, p in pairs],
            document=document,
            position=position,
        )

    def _positions(self, index: int, ids: list[int], positions: Positions, count: int) -> list[int]:
        special = set(self.tokenizer.all_special_ids)
        ordinary = [place for place, token in enumerate(ids) if token not in special]
        if not ordinary:
            raise DataError(f"text {index} holds no token to read: give it at least one word")
        if positions == "all":
            return ordinary
        if positions == "last":
            return ordinary[-1:]
        if isinstance(positions, str) or len(positions) != count:
            raise DataError(f"positions {positions!r}: expected 'last', 'all', or one entry for each of {count} texts")
        own = positions[index]
        places = [own] if isinstance(own, int) else list(own)
        for place in places:
            if not -len(ids) <= place < len(ids):
                raise DataError(f"position {place} of text {index}: it has {len(ids)} tokens, 0 to {len(ids) - 1}")
        return [place % len(ids) for place in places]

    def _read(self, ids: list[list[int]], wanted: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        device = next(self.model.parameters()).device
        longest = max(map(len, ids))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids], device=device)
        row = torch.tensor([i for i, places in enumerate(wanted) for _ in places], dtype=torch.long, device=device)
        position = torch.tensor([p for places in wanted for p in places], dtype=torch.long, device=device)
        return self(tokens, mask, row, position)

    @torch.no_grad()
    def splice(
        self,
        tokens: Int[Tensor, "document time"],
        position: Int[Tensor, " document"],
        vector: Float[Tensor, "document d_model"],
        rescale: bool = True,
    ) -> Float[Tensor, "document time vocab"]:
        """Logits with block `layer`'s output at `position` replaced by `|h| v / |v|`, or by v itself.

        A reconstruction has an arbitrary norm, hence `rescale`. The hook lives for this call only.
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

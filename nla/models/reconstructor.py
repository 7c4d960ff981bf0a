"""The reconstructor: an explanation goes in, a vector in the space of activations comes out."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.models.backbone import body, check_layer, embed, load_model, load_tokenizer, shared_copy, truncated
from nla.models.lora import add_lora
from nla.models.prompts import reconstructor_tokens, several, suffix_ids

MAX_LENGTH = 512  # tokens of the filled prompt; longer explanations are cut, the suffix is kept


class Reconstructor(nn.Module):
    """Blocks 0..l of the LM without final norm, and a linear head read at the prompt's last token.

    The head starts as the identity: with the default initialization the prediction shrinks and 17 % is lost at step 0.
    It stays in fp32.
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        max_length: int = MAX_LENGTH,
    ):
        super().__init__()
        self.body = decoder
        d_model = int(decoder.config.hidden_size)
        self.head = nn.Linear(d_model, d_model, bias=False, dtype=torch.float32)
        nn.init.eye_(self.head.weight)
        self.head.to(next(decoder.parameters()).device)
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.suffix_ids = suffix_ids(tokenizer, template)
        self.eval()

    @classmethod
    def from_target(
        cls,
        model_id: str,
        layer: int,
        template: str,
        dtype: str = "float32",
        revision: str | None = None,
        adapter: dict | None = None,
        base: PreTrainedModel | None = None,
    ) -> "Reconstructor":
        """The target's blocks 0..layer: its own copy, or the weights of `base` under an adapter.

        `adapter`: rank, alpha, dropout of a LoRA; None trains all weights of its own copy.
        """
        model = load_model(model_id, dtype, revision) if base is None or adapter is None else shared_copy(base)
        check_layer(model, layer)
        decoder = truncated(body(model), layer)
        if adapter is not None:
            decoder = add_lora(decoder, **adapter)
        return cls(decoder, load_tokenizer(model_id, revision), template)

    @property
    def layer(self) -> int:
        return int(self.body.config.num_hidden_layers) - 1

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"]]:
        """The filled prompts, right padded, on the module's device."""
        tokens, mask = reconstructor_tokens(self.tokenizer, self.template, texts, self.max_length, self.suffix_ids)
        device = self.head.weight.device
        return tokens.to(device), mask.to(device)

    def forward(
        self, tokens: Int[Tensor, "sample time"], mask: Bool[Tensor, "sample time"]
    ) -> Float[Tensor, "sample d_model"]:
        """The prediction, of arbitrary norm, read at each row's last real token."""
        # right padding and causal attention: no real token sees padding
        hidden = self.body(inputs_embeds=embed(self.body, tokens), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
        with torch.autocast(tokens.device.type, enabled=False):
            return self.head(last.float())

    @torch.no_grad()
    def reconstruct(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "sample d_model"]:
        """Predictions for many texts, batched by length to save padding, in the order given; dropout off."""
        was_training = self.training
        self.eval()
        output = torch.zeros(len(several(texts)), self.head.out_features, device=self.head.weight.device)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        try:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                output[chosen] = self(*self.tokenize([texts[index] for index in chosen]))
        finally:
            self.train(was_training)
        return output


def frozen_copy(reconstructor: Reconstructor) -> Reconstructor:
    """The reconstructor as it is now. Untrained weights (those under an adapter) are shared, not copied."""
    shared: dict[int, object] = {id(p): p for p in reconstructor.parameters() if not p.requires_grad}
    shared[id(reconstructor.tokenizer)] = reconstructor.tokenizer
    return copy.deepcopy(reconstructor, shared).requires_grad_(False).eval()

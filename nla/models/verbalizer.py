"""The verbalizer p(z | h): an activation enters as one token's embedding, an explanation comes out."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.core.objectives import Scale, normalize
from nla.core.padding import padded
from nla.core.records import Completions
from nla.errors import InjectionError
from nla.models.backbone import body, embed, head_logits, input_gain, stop_ids, width
from nla.models.explanations import forbidden_in_explanations, format_response, parse_completions
from nla.models.packing import pack, shared_layout
from nla.models.prompts import VerbalizerPrompt, pad_id, token_ids
from nla.models.sampling import SamplingParams, sampler
from nla.models.sampling.engine import misfit

ROUNDING = 0.02  # most that an injected row may differ from its activation, relative to its norm; bfloat16 needs 0.004
FAR_OFF = 100.0  # ratio of injection scale to activation norm that causes a warning


class Verbalizer(nn.Module):
    """A causal LM with a prompt whose marker is replaced by `normalize(h, injection_scale)`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: VerbalizerPrompt,
        injection_scale: Scale,
        reconstructor_template: str | None = None,
    ):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.injection_scale = injection_scale
        self.stop_ids = frozenset(stop_ids(model, tokenizer) | {prompt.end_of_turn})
        self.pad_id = pad_id(tokenizer, prompt.end_of_turn)
        self.vocabulary = _vocabulary(model, tokenizer)
        self.forbidden = forbidden_in_explanations(tokenizer, prompt.marker, reconstructor_template)
        self._gain = input_gain(body(model))
        self._scale_checked = False
        self._prompt_tokens: Tensor
        self.register_buffer("_prompt_tokens", torch.tensor(prompt.tokens), persistent=False)
        self.eval()
        self.engine_fits = self._engine_fits()

    @property
    def d_model(self) -> int:
        return width(self.model)

    @property
    def device(self) -> torch.device:
        return self._prompt_tokens.device

    def _engine_fits(self) -> bool:
        """Whether the engine's attention gives this model's hidden states; warns if it does not.

        Decided on the built model, adapter included, by one forward pass of the prompt on each path: the config does
        not show what in a model's code the engine cannot do. Weights may move, change or be sharded afterwards.
        """
        prompt = embed(body(self.model), self._prompt_tokens).detach().unsqueeze(0)
        reason = misfit(self.model, prompt, self.prompt.position)
        if reason is not None:
            warnings.warn(
                f"{type(self.model).__name__} cannot be sampled by the engine ({reason}); Hugging Face's generate "
                "is used instead, which is slower",
                stacklevel=3,
            )
        return reason is None

    def prompt_embeddings(self, activation: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch prompt d_model"]:
        """The prompt once per activation, with that activation injected. Raises InjectionError."""
        marked = self._prompt_tokens == self.prompt.marker_id
        if int(marked.sum()) != 1 or not bool(marked[self.prompt.position]):
            raise InjectionError(
                f"the prompt's marker (id {self.prompt.marker_id}) is not found once at token {self.prompt.position}"
            )
        if activation.shape[-1] != self.d_model:
            raise InjectionError(f"activations have width {activation.shape[-1]}, the verbalizer {self.d_model}")
        norm = activation.float().norm(dim=-1)
        bad = ~(norm.isfinite() & (norm > 0))
        if bool(bad.any()):
            raise InjectionError(
                f"{int(bad.sum())} of {len(bad)} activations are zero or not finite, the first at row "
                f"{int(bad.nonzero()[0])}: nothing could be injected; check the data"
            )
        self._warn_once(norm)
        embeddings = embed(body(self.model), self._prompt_tokens)
        rows = embeddings.expand(len(activation), -1, -1)
        injected = (normalize(activation, self.injection_scale) / self._gain).to(embeddings.dtype)
        position = self.prompt.position
        return torch.cat([rows[:, :position], injected.unsqueeze(1), rows[:, position + 1 :]], dim=1)

    def require_injected(
        self, injected: Float[Tensor, "row d_model"], activation: Float[Tensor, "batch d_model"]
    ) -> None:
        """The injection counter: what the decoder is about to read at each marker is the row's own activation.

        Rows of one activation are contiguous. Each is compared, in the model's own type, with `normalize(h,
        injection_scale)`. Raises InjectionError unless all rows carry their activation.
        """
        each = len(injected) // max(1, len(activation))
        expected = normalize(activation, self.injection_scale).repeat_interleave(each, dim=0)
        apart = (injected.detach().float() * self._gain - expected).norm(dim=-1)
        right = int((apart <= ROUNDING * expected.norm(dim=-1)).sum())
        if right != len(injected):
            raise InjectionError(
                f"{right} of {len(injected)} rows carry their activation at token {self.prompt.position} of the "
                "verbalizer's prompt: the others would be explained unread; look for overflow with "
                f"model.dtype={injected.dtype}, else for code that changes the prompt's embeddings"
            )

    def _warn_once(self, norm: Float[Tensor, " batch"]) -> None:
        if self._scale_checked or self.injection_scale is None or not len(norm):
            return
        self._scale_checked = True
        scale, median = self.injection_scale, float(norm.median())
        if not 1 / FAR_OFF < scale / median < FAR_OFF:
            warnings.warn(
                f"activations of median norm {median:.3g} are injected at norm {scale:.3g}, {FAR_OFF:.0f} times off: "
                "a round number slightly above the median is usual; check injection_scale",
                stacklevel=3,
            )

    def forward(
        self,
        activation: Float[Tensor, "batch d_model"],
        tokens: Int[Tensor, "sample time"],
        mask: Bool[Tensor, "sample time"],
    ) -> Float[Tensor, "sample time"]:
        """Teacher-forced log-probs of `tokens` from raw logits, fp32, 0 where masked.

        The samples of one activation are contiguous and share its prompt. Only unmasked response positions reach the
        output head. A marker among `tokens` is an ordinary token.
        """
        if len(tokens) % len(activation):
            raise InjectionError(f"{len(tokens)} samples cannot be shared evenly by {len(activation)} activations")
        logits = head_logits(self.model, self._hidden(activation, tokens, mask))[:, : self.vocabulary]
        log_probs = -F.cross_entropy(logits, tokens[mask], reduction="none")
        return torch.zeros(tokens.shape, device=tokens.device).masked_scatter(mask, log_probs)

    def _hidden(
        self,
        activation: Float[Tensor, "batch d_model"],
        tokens: Int[Tensor, "sample time"],
        mask: Bool[Tensor, "sample time"],
    ) -> Float[Tensor, "asked d_model"]:
        """The state that predicts each unmasked token. Samples share a row if that costs less (`nla.models.packing`).

        Samples of one activation follow its whole prompt. Answers to different ones follow what precedes the marker;
        the rest of the prompt is then part of the sample.
        """
        decoder, position, prompt = body(self.model), self.prompt.position, self.prompt_embeddings(activation)
        samples, each = len(tokens), len(tokens) // len(activation)
        shared, together = shared_layout(samples, each, prompt.shape[1], position, tokens.shape[1], self.d_model)
        prompt = prompt.repeat_interleave(each, dim=0)
        separate = torch.cat([prompt[:, shared:], embed(decoder, tokens)], dim=1)
        if together == 1:
            # the last token predicts nothing; causal attention never sees padding, which is on the right
            inputs = torch.cat([prompt[:, :shared], separate[:, :-1]], dim=1)
            self.require_injected(inputs[:, position], activation)
            return decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, prompt.shape[1] - 1 :][mask]
        rest = prompt.shape[1] - shared
        present, asked = F.pad(mask, (rest, 0), value=True), F.pad(mask, (rest, 0), value=False)
        packing = pack(present, samples // together, shared)
        inputs = packing.inputs(prompt[::together, :shared], separate[:, :-1][packing.fed])
        first = packing.first()
        injected = inputs[:, position] if position < shared else inputs[packing.row[first], packing.column[first]]
        self.require_injected(injected, activation)
        hidden = decoder(
            inputs_embeds=inputs,
            attention_mask=packing.attention_mask(decoder, inputs.dtype),
            position_ids=packing.position,
            use_cache=False,
        ).last_hidden_state
        return hidden[packing.predictor_row, packing.predictor_column][asked[present]]

    def respond(self, texts: Sequence[str]) -> tuple[Int[Tensor, "sample time"], Bool[Tensor, "sample time"]]:
        """Warm-start answers as token ids: tags, text, the token that ends a turn; right padded."""
        answers = token_ids(self.tokenizer, [format_response(text) for text in texts], special=False)
        rows = [[*answer, self.prompt.end_of_turn] for answer in answers]
        tokens, mask = padded(rows, self.pad_id)
        return tokens.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def sample(
        self,
        activation: Float[Tensor, "batch d_model"],
        params: SamplingParams,
        seed: int = 0,
        first_row: int = 0,
    ) -> Completions:
        """`params.group_size` explanations per activation, contiguous. Dropout is off while sampling.

        A sample depends on seed and row; `first_row` continues the numbering of rows.
        An explanation is None if it is malformed or the length cap came before the stop token.
        """
        was_training = self.training
        self.eval()
        try:
            prompts = self.prompt_embeddings(activation)
            self.require_injected(prompts[:, self.prompt.position], activation)
            backend = params.backend if self.engine_fits else "hf"
            tokens, mask, log_probs = sampler(backend)(
                self.model,
                prompts,
                params,
                shared=self.prompt.position,
                stop_ids=self.stop_ids,
                pad_id=self.pad_id,
                seed=seed,
                first_row=first_row,
                vocabulary=self.vocabulary,
            )
        finally:
            self.train(was_training)
        return Completions(tokens, mask, self.parse(tokens, mask), log_probs)

    def parse(self, tokens: Int[Tensor, "sample time"], mask: Bool[Tensor, "sample time"]) -> list[str | None]:
        """The explanation of each completion, None if malformed or cut off."""
        return parse_completions(self.tokenizer, tokens, mask, self.stop_ids, self.forbidden)


def _vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of ids that can be tokens, where the embedding has more rows (Qwen's is padded); None: all can."""
    count = max(tokenizer.get_vocab().values()) + 1
    return count if count < model.config.get_text_config(decoder=True).vocab_size else None

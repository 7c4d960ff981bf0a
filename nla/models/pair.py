"""The pair with its prompts and scales: trained, saved, published, and used in a notebook."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nla import files
from nla.core.objectives import Scale, cosine, orthogonal_error, reconstruction_error, resolve_scale
from nla.core.records import Score, well_formed
from nla.core.summary import ActivationSummary, unusual
from nla.errors import ConfigError, DataError
from nla.models.backbone import check_layer, load_model, load_tokenizer, resolve, shared_copy, width
from nla.models.lora import add_lora, has_lora, save_adapter
from nla.models.pretrained import format as release
from nla.models.pretrained import loading
from nla.models.pretrained.hub import cached_commit
from nla.models.pretrained.loading import HALVES
from nla.models.pretrained.metadata import Metadata, write_metadata
from nla.models.pretrained.older_names import add_older_names
from nla.models.prompts import Templates, build_verbalizer_prompt, resolve_marker, several
from nla.models.reconstructor import Reconstructor
from nla.models.sampling.params import Backend, SamplingParams
from nla.models.verbalizer import Verbalizer


class NLA(nn.Module):
    """Verbalizer and reconstructor for the activations of `base_model` after block `layer`."""

    def __init__(
        self,
        verbalizer: Verbalizer,
        reconstructor: Reconstructor,
        *,
        base_model: str,
        layer: int,
        mse_scale: Scale,
        templates: Templates,
        stage: str | None = None,
        base_revision: str | None = None,
        parents: tuple[str, ...] = (),
        summary: ActivationSummary | None = None,
        own_weights: bool = False,
    ):
        super().__init__()
        self.verbalizer = verbalizer
        self.reconstructor = reconstructor
        self.base_model = base_model
        self.layer = layer
        self.mse_scale = mse_scale
        self.templates = templates
        self.stage = stage
        self.base_revision = base_revision
        self.parents = parents
        self.summary = summary  # of the training activations, if known
        self.own_weights = own_weights  # adapters, if any, are on weights other than the base model's
        self.eval()

    @property
    def injection_scale(self) -> Scale:
        return self.verbalizer.injection_scale

    @property
    def d_model(self) -> int:
        return self.verbalizer.d_model

    @property
    def device(self) -> torch.device:
        return self.reconstructor.head.weight.device

    @classmethod
    def from_target(
        cls,
        model_id: str,
        layer: int,
        templates: Templates,
        marker: str | int | None = None,
        injection_scale: str | float | None = "sqrt_d_model",
        mse_scale: str | float | None = "sqrt_d_model",
        adapter: dict[str, Any] | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        base: PreTrainedModel | None = None,
    ) -> "NLA":
        """An untrained pair: both halves start as copies of the target.

        `marker`: its text, a code point (`U+2588`) or a token id; None searches for one. `adapter` (rank, alpha,
        dropout) trains a LoRA on each half, and both halves share one frozen copy of the weights: that of `base` (the
        target's model) if given. Without an adapter each half trains its own copy.

        Raises ModelError, ConfigError (layer, scales, templates), InjectionError (marker).
        """
        model = shared_copy(base) if base is not None and adapter is not None else load_model(model_id, dtype, revision)
        check_layer(model, layer)
        tokenizer = load_tokenizer(model_id, revision)
        prompt = build_verbalizer_prompt(tokenizer, templates.verbalizer, resolve_marker(tokenizer, marker))
        # before the verbalizer's adapter is added to the same modules
        reconstructor = Reconstructor.from_target(
            model_id, layer, templates.reconstructor, dtype, revision, adapter, base=model
        )
        if adapter is not None:
            add_lora(model, **adapter)
        scale = resolve_scale(injection_scale, width(model))
        return cls(
            Verbalizer(model, tokenizer, prompt, scale, templates.reconstructor),
            reconstructor,
            base_model=str(model_id),
            layer=layer,
            mse_scale=resolve_scale(mse_scale, width(model)),
            templates=templates,
            base_revision=cached_commit(resolve(model_id), revision),
        )

    @torch.no_grad()
    def explain(
        self,
        activation: Float[Tensor, "batch d_model"],
        samples: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 150,
        seed: int = 0,
        top_p: float = 1.0,
        top_k: int = 0,
        batch_size: int = 32,
        backend: Backend = "engine",
        best_of: int = 1,
    ) -> list[list[str | None]]:
        """`samples` explanations of each activation, `[batch][samples]`; None if malformed or cut off.

        Temperature 0 is greedy. `best_of`: each is the best of this many samples, by the error of its reconstruction
        (published: 10 samples add 0.024 to FVE). The texts depend on the seed and a row's index, not on `batch_size`.

        Any vector can be explained; one unlike the training activations in norm or direction causes a warning.
        """
        if best_of > 1:
            choices = {"top_p": top_p, "top_k": top_k, "batch_size": batch_size, "backend": backend}
            candidates = self.explain(activation, samples * best_of, temperature, max_new_tokens, seed, **choices)
            return [self._best(row, texts, best_of) for row, texts in zip(activation, candidates, strict=True)]
        for remark in unusual(activation, self.summary, self.injection_scale):
            warnings.warn(remark, stacklevel=3)
        params = SamplingParams(samples, max_new_tokens, temperature, top_p, top_k, backend, dtype=None, graphs=None)
        explanations: list[list[str | None]] = []
        for start in range(0, len(activation), batch_size):
            rows = activation[start : start + batch_size].to(self.device)
            texts = self.verbalizer.sample(rows, params, seed, first_row=start * samples).explanation
            explanations += [texts[i : i + samples] for i in range(0, len(texts), samples)]
        return explanations

    def _best(self, activation: Float[Tensor, " d_model"], texts: list[str | None], best_of: int) -> list[str | None]:
        """The text with the least error of each `best_of`; a malformed one only if all are."""
        error = self.score(activation.expand(len(texts), -1), texts).error.view(-1, best_of)
        formed = well_formed(texts, error.device).view(-1, best_of)
        chosen = torch.where(formed, error, torch.inf).argmin(1).tolist()
        return [texts[first * best_of + index] for first, index in enumerate(chosen)]

    def reconstruct(self, texts: Sequence[str], batch_size: int = 64) -> Float[Tensor, "sample d_model"]:
        """The reconstructor's predictions, of arbitrary norm."""
        return self.reconstructor.reconstruct(texts, batch_size)

    def score(self, activation: Float[Tensor, "batch d_model"], texts: Sequence[str | None]) -> Score:
        """Error (at `mse_scale`) and cosine of each text's reconstruction; None scores as an orthogonal vector."""
        if len(several(texts)) != len(activation):
            raise DataError(f"{len(texts)} texts for {len(activation)} activations: give one text for each")
        truth = activation.to(self.device).float()
        prediction = self.reconstruct([text or "" for text in texts])
        formed = well_formed(texts, self.device)
        error = reconstruction_error(prediction, truth, self.mse_scale)
        return Score(
            error=torch.where(formed, error, orthogonal_error(truth, self.mse_scale)),
            cosine=torch.where(formed, cosine(prediction, truth), 0.0),
        )

    def save_pretrained(
        self, folder: str | Path, stage: str | None = None, training: dict[str, Any] | None = None
    ) -> None:
        """Write `folder/verbalizer` and `folder/reconstructor` in the released format.

        Adapters are merged into these weights. Those on the base model's own weights are also saved separately, in
        `adapter/` of each half, so that training can continue them. Both halves appear at once: a kill never leaves
        half a pair.
        """
        with files.new_folder(Path(folder)) as scratch:
            self._save(scratch, stage, training)

    def save_adapters(self, folder: str | Path) -> None:
        """Write only what was trained: adapters in bfloat16, head, metadata; loading needs the base model.

        Raises ConfigError for a pair whose weights are its own.
        """
        if self.own_weights or not has_lora(self.verbalizer.model):
            raise ConfigError("the pair has weights of its own: only adapters on the base model can be saved alone")
        with files.new_folder(Path(folder)) as scratch:
            for half, role in zip(HALVES, ("av", "ar"), strict=True):
                half_folder = scratch / half
                half_folder.mkdir()
                if half == "verbalizer" and self.summary is not None:
                    self.summary.save(half_folder)
                if half == "reconstructor":
                    release.save_head(self.reconstructor.head, half_folder)
                adapted = self.verbalizer.model if half == "verbalizer" else self.reconstructor.body
                save_adapter(adapted, self.base_model, half_folder, torch.bfloat16)
                write_metadata(half_folder, self._metadata(role, self.stage, None))

    def _save(self, folder: Path, stage: str | None, training: dict[str, Any] | None) -> None:
        for half, role in zip(HALVES, ("av", "ar"), strict=True):
            half_folder = folder / half
            half_folder.mkdir()
            if half == "verbalizer":
                if self.summary is not None:
                    self.summary.save(half_folder)
                release.save_causal_lm(self.verbalizer.model, half_folder)
            else:
                release.save_reconstructor(self.reconstructor.body, self.reconstructor.head, half_folder)
            if not self.own_weights:
                adapted = self.verbalizer.model if half == "verbalizer" else self.reconstructor.body
                save_adapter(adapted, self.base_model, half_folder)
            getattr(self, half).tokenizer.save_pretrained(half_folder)
            add_older_names(half_folder, padding_side="right" if half == "reconstructor" else None)
            write_metadata(half_folder, self._metadata(role, stage or self.stage, training))

    def _metadata(self, role: str, stage: str | None, training: dict[str, Any] | None) -> Metadata:
        prompt = self.verbalizer.prompt
        return Metadata(
            role=role,
            base_model=self.base_model,
            d_model=self.d_model,
            layer=self.layer,
            injection_scale=self.injection_scale,
            mse_scale=self.mse_scale,
            templates={"av": self.templates.verbalizer, "ar": self.templates.reconstructor},
            tokens={
                "injection_char": prompt.marker,
                "injection_token_id": prompt.marker_id,
                "injection_left_neighbor_id": prompt.left_id,
                "injection_right_neighbor_id": prompt.right_id,
                "critic_suffix_ids": list(self.reconstructor.suffix_ids),
            },
            stage=stage,
            training=training,
            base_revision=self.base_revision,
            parents=self.parents,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        verbalizer: str | Path | None = None,
        reconstructor: str | Path | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        adapter: dict[str, Any] | Literal["saved"] | None = None,
        base: PreTrainedModel | None = None,
    ) -> "NLA":
        """Load a pair: one folder (or hub repository) holding both halves, or the two halves by name.

        `dtype` of the weights: float32, bfloat16, float16, or nf4. `adapter` (rank, alpha, dropout) trains a LoRA on
        each half. With `base` (the target's model) a pair saved with adapters continues them, and target and halves
        share the weights of `base`; otherwise each half gets a fresh adapter on its own weights, which at first
        changes nothing. `adapter="saved"` is for use without training: the saved adapters on `base` if there are any,
        else the whole weights. Of a pair without whole weights (`save_adapters`) the base model is loaded if none is
        given.

        Raises ReleaseError for missing files, pickles, contradictions, and tokens that drifted; ModelError for an
        adapter that does not fit.
        """
        first, second = loading.find_halves(folder, verbalizer, reconstructor, revision)
        av, ar, templates = loading.read_facts(first, second)
        if loading.adapters_alone(first, second):
            base = load_model(av.base_model, dtype, av.base_revision) if base is None else base
            adapter = "saved" if adapter is None else adapter
        weights = loading.Weights.of((first, second), dtype, adapter, base)
        return cls(
            loading.load_verbalizer(first, av, templates, weights),
            loading.load_reconstructor(second, ar, templates, weights),
            summary=ActivationSummary.load(first, av.d_model),
            base_model=av.base_model,
            layer=ar.layer,
            mse_scale=ar.mse_scale,
            templates=templates,
            stage=ar.stage or av.stage,
            base_revision=av.base_revision,
            parents=loading.parents(first, second, av, ar),
            own_weights=weights.base is None,
        )

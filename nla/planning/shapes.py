"""What a model is, from its Hugging Face config alone: parameters block by block, and what a token costs in each.

The class that the config names is built on torch's meta device, which allocates nothing: the counts are the model's
own, of whatever architecture, and no formula per family has to follow it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from nla.errors import ConfigError, ModelError, first_line
from nla.models.backbone import blocks, body, quiet, resolve
from nla.models.parameters import inner_matrices

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block. Widths are in elements of one token."""

    width: int  # d_model
    tensors: tuple[Size, ...]  # of all parameters
    inner: tuple[Size, ...]  # of its linear layers' weights, those that Muon takes
    linear: tuple[tuple[int, int], ...]  # (in, out) of the layers that carry adapters
    stacks: tuple[
        tuple[int, int, int, int], ...
    ]  # the same of stacked experts: how many, in, out, parts (2: gate and up)
    active: float  # matrix entries that one token is multiplied with: of experts only those that it is routed to
    experts: float  # those of them in experts
    chosen: int  # experts that one token is routed to; 0 without experts
    experts_in_all: int
    query: int  # heads * head width
    key: int  # kv heads * head width
    heads: int
    mlp: int  # inner width of the MLP, of all experts that a token uses
    stream_norms: int  # norms of the residual stream: 2, or 4 with norms behind attention and MLP
    head_norms: bool  # of queries and keys
    rms: bool
    fp32_norms: bool  # Gemma: the normed value is kept in fp32
    readers: int  # linear layers that read a norm's output
    gated: bool
    window: int | None  # of a block that attends to the last tokens only
    eager: bool  # attention scores are soft-capped, so that no fused kernel serves

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors))

    def adapter_tensors(self, rank: int) -> list[Size]:
        adapter_sizes = [size for inside, outside in self.linear for size in ((rank, inside), (outside, rank))]
        for many, inside, outside, block_shapes in self.stacks:  # PEFT gives fused parts a rank each
            adapter_sizes += [(block_shapes * rank * many, inside), (outside, block_shapes * rank * many)]
        return adapter_sizes


@dataclass(frozen=True, slots=True)
class Shape:
    """A causal LM: tables in front, blocks, final norm, head (no parameters of its own where it is tied)."""

    name: str
    d_model: int
    vocab: int
    tied: bool
    tables: tuple[Size, ...]
    blocks: tuple[Block, ...]
    norm: tuple[Size, ...]
    head: tuple[Size, ...]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors()))

    @property
    def active(self) -> float:
        """Matrix entries that one token is multiplied with, the head included."""
        return sum(block.active for block in self.blocks) + self.d_model * self.vocab

    def tensors(self) -> list[Size]:
        return [*self.tables, *(size for block in self.blocks for size in block.tensors), *self.norm, *self.head]

    def root(self) -> int:
        """Parameters outside the blocks."""
        return sum(map(math.prod, (*self.tables, *self.norm, *self.head)))

    def truncated(self, layer: int) -> "Shape":
        """Tables and blocks 0..layer: the body of a reconstructor, and what reading runs."""
        return Shape(
            self.name, self.d_model, self.vocab, self.tied, self.tables, self.blocks[: layer + 1], norm=(), head=()
        )

    def adapter_tensors(self, rank: int) -> list[Size]:
        return [size for block in self.blocks for size in block.adapter_tensors(rank)]


def load_config(model_id: str, revision: str | None = None, shape: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The config of a packaged id, a folder or a hub id; or the one that `shape` writes out (``model_type`` and sizes).

    Raises ConfigError for a shape that no config class takes, ModelError for a config that cannot be found.
    """
    if shape is not None:
        sizes = dict(shape)
        if "model_type" not in sizes:
            raise ConfigError(
                "model.shape.model_type is not set: name the architecture, e.g. qwen2, llama, gemma3_text"
            )
        try:
            return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        except Exception as error:
            raise ConfigError(f"model.shape: {first_line(error)}; give the sizes as config.json has them") from error
    if Path(str(resolve(model_id))).is_dir() and not (Path(str(resolve(model_id))) / "config.json").is_file():
        raise ConfigError(f"model.path={model_id}: no model in this folder; it must hold config.json or a GGUF file")
    try:
        return AutoConfig.from_pretrained(resolve(model_id), revision=revision, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"model.id={model_id}: its config cannot be found ({first_line(error)}); give a folder, a hub id, or the "
            "sizes: '+model.shape={model_type: qwen2, hidden_size: 3584, ...}'"
        ) from error


def shape_of(config: PretrainedConfig) -> Shape:
    """The language model of this config. Raises ModelError where transformers has no causal LM for it."""
    text: Any = config.get_text_config(decoder=True)
    try:
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(text)
        decoder = body(model)
    except Exception as error:
        raise ModelError(f"model type {config.model_type!r}: no causal language model ({first_line(error)})") from error
    block_shapes = tuple(_block(module, text, index) for index, module in enumerate(blocks(decoder)))
    inside = {id(p) for module in blocks(decoder) for p in module.parameters()}
    embedding: Any = decoder.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    outer = {name: p for name, p in decoder.named_parameters() if id(p) not in inside}
    known = {id(p) for p in outer.values()} | inside
    tables = tuple(tuple(p.shape) for p in outer.values() if p.ndim > 1)
    norm = tuple(tuple(p.shape) for p in outer.values() if p.ndim == 1)
    head = tuple(tuple(p.shape) for p in model.parameters() if id(p) not in known)
    tied = output is not None and output.weight is embedding.weight
    return Shape(
        str(text.model_type),
        int(text.hidden_size),
        int(embedding.weight.shape[0]),
        tied,
        tables,
        block_shapes,
        norm,
        head,
    )


def _block(module: nn.Module, config: Any, index: int) -> Block:
    d_model, heads = int(config.hidden_size), int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or d_model // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    norms = [(n, m) for n, m in module.named_modules() if type(m).__name__.endswith("Norm") and _width(m)]
    stream = [m for n, m in norms if "attn." not in n and "attention." not in n]
    chosen = int(getattr(config, "num_experts_per_tok", None) or 1)
    stacked = [p for p in module.parameters() if p.ndim == 3]
    routers = [p for n, p in module.named_parameters() if p.ndim == 2 and n.removesuffix(".weight") not in linear]
    experts = sum(chosen / p.shape[0] * p.numel() for p in stacked)
    mlp, gated = _mlp(linear, stacked, chosen)
    readers = [n for n in linear if n.rpartition(".")[2] not in ("o_proj", "down_proj", "c_proj", "out_proj", "dense")]
    return Block(
        width=d_model,
        tensors=tuple(tuple(p.shape) for p in module.parameters()),
        inner=tuple(tuple(p.shape) for p in inner_matrices(module)),
        linear=(*(_sides(m) for m in linear.values()), *((p.shape[1], p.shape[0]) for p in routers)),
        stacks=tuple(
            (p.shape[0], p.shape[2], p.shape[1], 2 if "gate_up" in n else 1)
            for n, p in module.named_parameters()
            if p.ndim == 3
        ),
        active=experts + sum(p.numel() for p in module.parameters() if p.ndim == 2),
        experts=experts,
        chosen=chosen if stacked else 0,
        experts_in_all=stacked[0].shape[0] if stacked else 0,
        query=heads * head,
        key=kv_heads * head,
        heads=heads,
        mlp=mlp,
        stream_norms=len(stream),
        head_norms=len(norms) > len(stream),
        rms=not any(isinstance(m, nn.LayerNorm) for _, m in norms),
        fp32_norms=any("Gemma" in type(m).__name__ for _, m in norms),
        readers=len(readers) + bool(stacked),
        gated=gated,
        window=_window(config, index),
        eager=config._attn_implementation == "eager" or getattr(config, "attn_logit_softcapping", None) is not None,
    )


def _window(config: Any, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True) or (kinds and kinds[index] != "sliding_attention"):
        return None
    return getattr(config, "sliding_window", None)


def _mlp(linear: Mapping[str, nn.Module], stacked: list[nn.Parameter], chosen: int) -> tuple[int, bool]:
    """Inner width of what one token uses of the MLP, and whether a gate multiplies it."""
    inner, gated = 0, bool(stacked)
    for name, module in linear.items():
        if (
            "attn" in name
            or "attention" in name
            or name.rpartition(".")[2] not in ("down_proj", "c_proj", "fc2", "dense_4h_to_h")
        ):
            continue
        inner += _sides(module)[0]
        gated = gated or any("gate" in other for other in linear)
    if stacked:
        inner += chosen * min(stacked[-1].shape[1:])
    return inner, gated


def _sides(module: nn.Module) -> tuple[int, int]:
    weight: Any = module.weight
    rows, columns = weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _width(norm: nn.Module) -> int:
    weight = getattr(norm, "weight", None)
    return 0 if weight is None else int(weight.numel())

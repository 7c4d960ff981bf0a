"""Hugging Face causal language models: load, find the decoder body, cut it at a layer.

Layer convention: `layer = l` is the output of block l, counted from 0, that is `hidden_states[l + 1]` before the final
norm. No remote code, no pickled weights.
"""

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from nla.errors import ConfigError, ModelError, ReleaseError
from nla.models.pretrained.gguf import check_content, dequantized, gguf_file
from nla.models.pretrained.hub import remedy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = "nf4"  # linear layers in 4 bits (bitsandbytes), the rest in bfloat16: a frozen base under adapters
BLOCKS = ("layers", "h")  # the two names under which decoder bodies keep their blocks
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
PACKAGED = Path(__file__).parents[1] / "packaged"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def usable_device(name: str, key: str = "device", fix: str = "use cpu") -> torch.device:
    """The device of a torch or Lightning name: cpu, cuda, gpu, mps. Raises ConfigError if there is no such device."""
    kind, _, index = name.partition(":")
    kind = {"gpu": "cuda"}.get(kind, kind)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in available or (index and not index.isdigit()):
        raise ConfigError(f"{key}={name}: no such device; expected one of {', '.join(available)}")
    if not available[kind]:
        raise ConfigError(f"{key}={name}: this machine has no {'Apple ' if kind == 'mps' else ''}GPU; {fix}")
    return torch.device(f"{kind}:{index}" if index else kind)


def resolve(model_id: str | Path) -> str | Path:
    """A packaged target's folder, the folder of a dequantized GGUF file, else the id itself (a folder or a hub id)."""
    name = str(model_id)
    if name.isidentifier() and (PACKAGED / name).is_dir():
        return PACKAGED / name
    file = gguf_file(model_id)
    return model_id if file is None else dequantized(file)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports: a reconstructor lacks norm and lm_head by design."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def load_model(model_id: str | Path, dtype: str = "float32", revision: str | None = None) -> PreTrainedModel:
    """A causal LM in evaluation mode. Raises ModelError; refuses pickled weights and a model's own code."""
    model, info = load_model_with_info(model_id, dtype, revision)
    if info["missing_keys"]:
        raise ModelError(
            f"model {str(model_id)!r}: {len(info['missing_keys'])} weights are missing, such as "
            f"{sorted(info['missing_keys'])[0]}: the files are incomplete"
        )
    return model


def load_model_with_info(
    model_id: str | Path, dtype: str = "float32", revision: str | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """As `load_model`, with transformers' report of missing and unexpected weights.

    Only the language model of a multimodal model is kept: its encoders take memory and are never run.
    """
    if dtype not in (*DTYPES, QUANTIZED):
        raise ConfigError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}, {QUANTIZED}")
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, torch.bfloat16)}
    if dtype == QUANTIZED:
        options["quantization_config"] = four_bits()
    try:
        with quiet():
            source = resolve(model_id)
            check_content(model_id, Path(source), revision)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                **options,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (ConfigError, ModelError):
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError... for a wrong id
        raise ModelError(
            f"model {str(model_id)!r} cannot be loaded as a causal language model with safetensors weights "
            f"({remedy(error, model_id, revision)}): give a packaged id, a folder or a hub id"
        ) from error
    model, info = loaded
    prefix = next((name for name, module in model.named_modules() if module is body(model)), "")
    if "." in prefix:  # inside a wrapper
        model = _text_model(model)
        for kind in ("missing_keys", "unexpected_keys"):
            info[kind] = [name for name in info[kind] if name.startswith((prefix, "lm_head"))]
    return model.eval(), info


def four_bits() -> BitsAndBytesConfig:
    """How `nf4` stores weights (QLoRA, Dettmers 2023). Raises ConfigError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"dtype {QUANTIZED!r} needs bitsandbytes: pip install 'nla[quantized]', or use bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _text_model(wrapper: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside a multimodal wrapper, with the same weights."""
    decoder, head = body(wrapper), wrapper.get_output_embeddings()
    decoder.config.tie_word_embeddings = wrapper.config.tie_word_embeddings
    model = causal_lm(decoder)
    if head is not None:
        model.set_output_embeddings(head)
    model.generation_config = wrapper.generation_config
    return model


def causal_lm(decoder: PreTrainedModel) -> PreTrainedModel:
    """The causal LM of a body's architecture around this very body; its output head is empty (a meta tensor)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(decoder.config)
    setattr(model, model.base_model_prefix, decoder)
    model.config = decoder.config
    if hasattr(decoder.config, "quantization_config"):
        model.config = copy.deepcopy(decoder.config)
        delattr(model.config, "quantization_config")
    return model


def load_tokenizer(model_id: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ModelError."""
    try:
        return AutoTokenizer.from_pretrained(resolve(model_id), revision=revision, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"no tokenizer can be loaded for {str(model_id)!r} ({remedy(error, model_id, revision)}): "
            "the folder or hub repository must hold tokenizer.json"
        ) from error


def body(model: nn.Module) -> PreTrainedModel:
    """The decoder body, through LM heads, multimodal wrappers and PEFT wrappers. Raises ModelError if there is none."""
    candidate: Any = model
    for _ in range(4):
        if _blocks_name(candidate):
            return candidate
        if hasattr(candidate, "get_base_model"):
            candidate = candidate.get_base_model()
        elif hasattr(candidate, "get_decoder"):
            candidate = candidate.get_decoder()
    raise ModelError(f"{type(model).__name__}: no decoder blocks found under {' or '.join(BLOCKS)}")


def _blocks_name(module: nn.Module) -> str | None:
    return next((name for name in BLOCKS if isinstance(getattr(module, name, None), nn.ModuleList)), None)


def blocks(decoder: nn.Module) -> nn.ModuleList:
    """The blocks of a decoder body, in order."""
    name = _blocks_name(decoder)
    if name is None:
        raise ModelError(f"{type(decoder).__name__} is not a decoder body")
    return getattr(decoder, name)


def depth(model: nn.Module) -> int:
    return len(blocks(body(model)))


def width(model: nn.Module) -> int:
    return int(body(model).config.hidden_size)


def check_layer(model: nn.Module, layer: int) -> None:
    """Raises ConfigError unless `layer` names a block."""
    count = depth(model)
    if not 0 <= layer < count:
        raise ConfigError(
            f"layer.index={layer}: this model has {count} blocks, so the layer is 0 to {count - 1} "
            "(counted from 0, the output of that block)"
        )


def truncated(decoder: PreTrainedModel, layer: int) -> PreTrainedModel:
    """A view of the body that ends after block `layer`, sharing every parameter with it.

    Its last hidden state is the raw residual stream after that block: the final norm is replaced by the identity. The
    original stays intact; the view costs no memory. `layer = -1` keeps no block.
    """
    view = copy.copy(decoder)
    view._modules = dict(decoder._modules)  # copy.copy shares the dict itself
    name = _blocks_name(decoder)
    if name is None:
        raise ModelError(f"{type(decoder).__name__} is not a decoder body")
    view._modules[name] = nn.ModuleList(list(blocks(decoder))[: layer + 1])
    for norm in FINAL_NORMS:
        if norm in view._modules:
            view._modules[norm] = nn.Identity()
    config = copy.deepcopy(decoder.config)
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[: layer + 1]
    config.num_hidden_layers = layer + 1
    view.config = config
    return view


def embed(decoder: PreTrainedModel, tokens: Int[Tensor, "*rows time"]) -> Float[Tensor, "*rows time d_model"]:
    """Token embeddings, as `inputs_embeds` expects them (Gemma scales them by sqrt(d) inside the embedding module)."""
    return decoder.get_input_embeddings()(tokens)


@torch.no_grad()
def input_gain(decoder: PreTrainedModel) -> float:
    """The factor between `inputs_embeds` and what block 0 sees: 1 nearly everywhere.

    Some architectures (Granite; Gemma in older transformers) multiply inside the body's forward. Measured with a view
    of no blocks as f(1) - f(0), so that GPT-2's added positions drop out.
    """
    weight: Any = decoder.get_input_embeddings().weight
    if weight.is_meta:
        return 1.0
    view = truncated(decoder, -1)
    was_training = decoder.training
    decoder.eval()
    try:
        probe = torch.zeros(2, 1, decoder.config.hidden_size, dtype=weight.dtype, device=weight.device)
        probe[1] = 1
        seen = view(inputs_embeds=probe, use_cache=False).last_hidden_state.float()
    finally:
        decoder.train(was_training)
    gain = float((seen[1] - seen[0]).mean())
    return 1.0 if abs(gain - 1) < 0.02 else gain


def head_logits(model: PreTrainedModel, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
    """Raw logits in fp32 from the body's last hidden state, with the scaling or soft cap of the architecture."""
    config = model.config.get_text_config(decoder=True)
    head: Any = model.get_output_embeddings()
    logits = head(hidden).float()
    # Cohere multiplies, Granite divides; a factor of 1 would copy the largest tensor of a step twice
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    if factor != 1.0:
        logits = logits * factor
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)


def unembed(model: PreTrainedModel, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
    """Logits of the residual stream after some block, as if it were the last one: final norm, then the head."""
    decoder = body(model)
    norm = next((getattr(decoder, name) for name in FINAL_NORMS if getattr(decoder, name, None) is not None), None)
    if norm is None:
        raise ModelError(f"{type(decoder).__name__}: no final norm found under {', '.join(FINAL_NORMS)}")
    return head_logits(model, norm(states.to(next(norm.parameters()).dtype)))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every id that the model or its tokenizer lists as an end of generation."""
    listed: Any = getattr(model.generation_config, "eos_token_id", None)
    ids: list[Any] = [*(listed if isinstance(listed, (list, tuple)) else [listed]), tokenizer.eos_token_id]
    return {int(token) for token in ids if token is not None}


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Another tree of modules around the very same weights: adapters added to one are not in the other.

    Costs no memory; each copy has its own config. Loading or training the weights of one changes both.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def refuse_pickles(folder: Path) -> None:
    """Raises ReleaseError if the folder holds weights in a format that can run code."""
    for pattern in PICKLES:
        for path in sorted(folder.glob(pattern)):
            raise ReleaseError(f"{path}: pickled files can run code and are refused; keep only safetensors")

"""Tiny random models of real architectures, and a tokenizer trained here."""

import dataclasses
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

from nla.models import backbone
from nla.models.prompts import Templates
from nla.models.sampling import SamplingParams

MARKER = "\u320e"
LAYERS, WIDTH, VOCAB = 3, 32, 320
FAMILIES = ("qwen3", "qwen2", "llama", "mistral", "gemma2", "gemma3", "gemma3_images", "gpt2", "qwen3_moe")
SIGHT = SiglipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)
CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEMPLATES = Templates(
    verbalizer="What does this say? <concept>{injection_char}</concept>",
    reconstructor="Summary of the following text: <text>{explanation}</text> <summary>",
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. user assistant",
    "What does this say? <concept></concept> <explanation>It rains in the town.</explanation>",
    "Summary of the following text: <text>Tom walks to the harbour.</text> <summary>",
] * 4


def make_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300-odd tokens with a chat template; `bos` puts one before every text, as Gemma does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|eos|>", "<|bos|>", "<|turn|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCAB - 1, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    raw.add_tokens([MARKER])
    if bos:
        from tokenizers.processors import TemplateProcessing

        raw.post_processor = TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", raw.token_to_id("<|bos|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|eos|>", bos_token="<|bos|>", chat_template=CHAT
    )


def make_config(family: str) -> Any:
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=256, initializer_range=0.2,
            bos_token_id=2, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
    if family == "qwen2":
        shared.pop("head_dim")
    windowed = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    return {
        "qwen3": lambda: Qwen3Config(**shared, tie_word_embeddings=True),
        "qwen2": lambda: Qwen2Config(**shared),
        "llama": lambda: LlamaConfig(**shared),
        "mistral": lambda: MistralConfig(**shared, sliding_window=8),
        "gemma2": lambda: Gemma2Config(**shared, **windowed, query_pre_attn_scalar=8),
        "gemma3": lambda: Gemma3TextConfig(**shared, **windowed, query_pre_attn_scalar=8),
        "gemma3_images": lambda: Gemma3Config(
            text_config=Gemma3TextConfig(**shared, **windowed, query_pre_attn_scalar=8).to_dict(),
            vision_config=SIGHT.to_dict(),
            mm_tokens_per_image=1,
            eos_token_id=1,
            tie_word_embeddings=True,
        ),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **shared, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True
        ),
    }[family]()


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(make_config(family)).eval()


def seen_by_first_block(verbalizer: Any, activation: torch.Tensor, tokens, mask) -> torch.Tensor:
    caught = []
    block = backbone.blocks(backbone.body(verbalizer.model))[0]
    handle = block.register_forward_pre_hook(
        lambda _m, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    verbalizer(activation, tokens, mask)
    handle.remove()
    return caught[0]


def sampling_params(group_size: int = 1, max_new_tokens: int = 16, **changes: Any) -> SamplingParams:
    """Samples of the policy, by the engine, unless `changes` say otherwise."""
    return dataclasses.replace(SamplingParams.policy(max_new_tokens, group_size), **changes)

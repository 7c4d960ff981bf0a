"""What the benchmarks run on: the world's pair with activations of its documents, and random Llamas of any size."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jaxtyping import Float
from timing import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nla.data.world import WorldSource
from nla.models.pair import NLA
from nla.models.prompts import MARKERS, Templates
from nla.models.target import Target


@dataclass(frozen=True, slots=True)
class Size:
    """Of a random Llama with tied embeddings."""

    d_model: int
    blocks: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


SIXTY_MILLION = Size(d_model=640, blocks=12, heads=10, kv_heads=5, intermediate=1712, vocab=8192)
TINY = Size(d_model=32, blocks=4, heads=4, kv_heads=2, intermediate=64, vocab=384)


def random_llama(size: Size, longest: int = 2048, seed: int = 0) -> LlamaForCausalLM:
    """Untrained, fp32, in evaluation mode."""
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.d_model,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few special tokens: enough for a random model, whose texts say nothing."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    raw.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", "<|eos|>", "<|bos|>"]
    raw.train_from_iterator(
        ["an explanation of what was read"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    raw.add_tokens([MARKERS[0]])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|eos|>", bos_token="<|bos|>")


def world_pair(folder: Path | None) -> NLA:
    """A saved pair of the world, else an untrained one: its target already knows how to write a few statements."""
    if folder is not None:
        return NLA.from_pretrained(folder)
    about = yaml.safe_load((ROOT / "conf/model/world.yaml").read_text(encoding="utf-8"))
    return NLA.from_target(
        about["id"], about["default_layer"], Templates(**about["templates"]), injection_scale=about["injection_scale"]
    )


def world_activations(nla: NLA, count: int) -> Float[Tensor, "batch d_model"]:
    """At the last token of as many held-out documents."""
    target = Target.from_pretrained(nla.base_model, nla.layer)
    documents = WorldSource({"test": count}).documents("test")
    return target.read([document.text for document in documents], positions="last").activation

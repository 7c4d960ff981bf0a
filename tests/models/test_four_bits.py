"""A base in 4 bits (bitsandbytes): read, trained under adapters, saved, merged, used. Skipped without bitsandbytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import MARKER, TEMPLATES, make_config, make_tokenizer
from support.pairs import LORA, shaken
from transformers import LlamaForCausalLM

from nla.models.pair import NLA
from nla.models.target import Target

pytest.importorskip("bitsandbytes")
WIDTH, TEXTS = 64, ["Tom walks to the harbour.", "It rains."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama as wide as bitsandbytes' CPU kernel requires, with rows that are blocks of 64."""
    config: Any = make_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = WIDTH, 2 * WIDTH, WIDTH // 4
    config.initializer_range = 0.05  # larger ones make attention so sharp that rounding decides
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def vectors(count: int) -> torch.Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def numbers(nla: NLA) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = nla.verbalizer.respond(TEXTS)
    return nla.verbalizer(vectors(2), tokens, mask).detach(), nla.reconstruct(TEXTS)


def cosines(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.float(), other.float()).min())


def test_activations_are_nearly_those_of_the_whole_model(folder: str):
    target = Target.from_pretrained(folder, 1, "nf4")
    kinds = {type(module).__name__ for module in target.model.modules()}
    assert "Linear4bit" in kinds
    whole = Target.from_pretrained(folder, 1).read(TEXTS, "all").activation
    activation = target.read(TEXTS, "all").activation
    assert activation.isfinite().all() and 0.8 < cosines(activation, whole) < 0.99999


def test_adapters_are_trained_saved_merged_and_used_on_it(folder: str, tmp_path: Path):
    target = Target.from_pretrained(folder, 1, "nf4")
    nla = NLA.from_target(folder, 1, TEMPLATES, MARKER, adapter=LORA, dtype="nf4", base=target.model)
    trained = {n: p for n, p in nla.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name == "reconstructor.head.weight" for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    shaken(nla)
    tokens, mask = nla.verbalizer.respond(TEXTS)
    loss = -nla.verbalizer(vectors(2), tokens, mask).sum() + nla.reconstructor(*nla.reconstructor.tokenize(TEXTS)).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert sum(float(p.grad.abs().sum()) > 0 for p in trained.values() if p.grad is not None) > len(trained) // 2
    torch.optim.SGD(trained.values(), lr=1e-4).step()

    nla.save_pretrained(tmp_path / "nla")
    back = NLA.from_pretrained(tmp_path / "nla", dtype="nf4", adapter="saved", base=target.model)
    for one, other in zip(numbers(nla), numbers(back), strict=True):
        assert torch.allclose(one, other, atol=0.05)  # bitsandbytes has different kernels with and without gradients
    merged = NLA.from_pretrained(tmp_path / "nla", dtype="bfloat16")
    assert not any("Linear4bit" in type(module).__name__ for module in merged.modules())
    assert cosines(merged.reconstruct(TEXTS), nla.reconstruct(TEXTS)) > 0.98
    again = NLA.from_pretrained(tmp_path / "nla", dtype="nf4")  # whole weights, each half in 4 bits
    assert cosines(again.reconstruct(TEXTS), nla.reconstruct(TEXTS)) > 0.8
    assert len(again.explain(vectors(2), max_new_tokens=4)) == 2

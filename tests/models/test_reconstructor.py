"""The reconstructor: identity at the start, read at the last real token, in any batch."""

import pytest
import torch
from support.models import TEMPLATES

from nla.errors import ConfigError
from nla.models import backbone
from nla.models.reconstructor import Reconstructor

TEXTS = ["It rains in the town.", "a", "Tom walks to the harbour and the fox jumps.", ""]


@pytest.fixture(scope="module")
def reconstructor(family_folder: str) -> Reconstructor:
    return Reconstructor.from_target(family_folder, 1, TEMPLATES.reconstructor)


def test_head_is_the_identity_in_fp32(model_folders: dict[str, str]):
    reconstructor = Reconstructor.from_target(model_folders["qwen3"], 1, TEMPLATES.reconstructor, dtype="bfloat16")
    assert reconstructor.head.weight.dtype == torch.float32
    assert torch.equal(reconstructor.head.weight, torch.eye(32))
    assert reconstructor.head.bias is None
    assert reconstructor(*reconstructor.tokenize(["a"])).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert reconstructor(*reconstructor.tokenize(["a"])).dtype == torch.float32


def test_neither_batch_nor_padding_matter(reconstructor: Reconstructor):
    together = reconstructor.reconstruct(TEXTS)
    assert torch.allclose(reconstructor.reconstruct(TEXTS, batch_size=1), together, atol=1e-5)
    assert torch.allclose(reconstructor.reconstruct(TEXTS[::-1], batch_size=3).flip(0), together, atol=1e-5)
    assert torch.allclose(reconstructor(*reconstructor.tokenize(TEXTS)), together, atol=1e-5)


def test_own_special_tokens_are_kept(model_folders: dict[str, str]):
    reconstructor = Reconstructor.from_target(model_folders["gemma3"], 1, TEMPLATES.reconstructor)
    tokens, _ = reconstructor.tokenize(TEXTS)
    assert (tokens[:, 0] == reconstructor.tokenizer.bos_token_id).all()


def test_holds_only_the_blocks_it_needs(reconstructor: Reconstructor):
    assert reconstructor.layer == 1
    assert len(backbone.blocks(reconstructor.body)) == 2
    assert not any("norm" in n.split(".")[1] or "ln_f" in n for n, _ in reconstructor.named_parameters() if "body" in n)


def test_gradient_reaches_body_and_head(reconstructor: Reconstructor):
    reconstructor.zero_grad()
    reconstructor(*reconstructor.tokenize(TEXTS)).square().mean().backward()
    assert reconstructor.head.weight.grad is not None
    grads = [p.grad for p in backbone.blocks(reconstructor.body).parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_lora_trains_adapter_and_head_only(tiny_folder: str):
    adapter = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
    reconstructor = Reconstructor.from_target(tiny_folder, 1, TEMPLATES.reconstructor, adapter=adapter)
    trainable = {name for name, p in reconstructor.named_parameters() if p.requires_grad}
    assert "head.weight" in trainable
    assert all("lora_" in name for name in trainable - {"head.weight"})


def test_no_texts(reconstructor: Reconstructor):
    assert reconstructor.reconstruct([]).shape == (0, 32)


def test_wrong_layer(tiny_folder: str):
    with pytest.raises(ConfigError, match="0 to 2"):
        Reconstructor.from_target(tiny_folder, 3, TEMPLATES.reconstructor)

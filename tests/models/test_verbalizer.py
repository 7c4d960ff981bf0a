"""Injection, log-probs, sampling, and the reference policy."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from support.models import (
    FAMILIES,
    MARKER,
    TEMPLATES,
    VOCAB,
    make_model,
    make_tokenizer,
    sampling_params,
    seen_by_first_block,
)

from nla.core.objectives import kl_to_reference, normalize
from nla.errors import InjectionError
from nla.models import backbone
from nla.models.packing import Packing
from nla.models.pair import NLA
from nla.models.prompts import build_verbalizer_prompt
from nla.models.reference import Reference
from nla.models.sampling import engine
from nla.models.verbalizer import Verbalizer


def make(folder: str, scale: float | None = 10.0) -> Verbalizer:
    tokenizer = backbone.load_tokenizer(folder)
    prompt = build_verbalizer_prompt(tokenizer, TEMPLATES.verbalizer, MARKER)
    return Verbalizer(backbone.load_model(folder), tokenizer, prompt, scale, TEMPLATES.reconstructor)


@pytest.fixture(scope="module", params=FAMILIES)
def verbalizer(request: pytest.FixtureRequest, model_folders: dict[str, str]) -> Verbalizer:
    return make(model_folders[request.param])


@pytest.fixture
def qwen(tiny_folder: str) -> Verbalizer:
    return make(tiny_folder)


def vectors(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def test_injection_where_the_body_scales_its_input(tiny_folder: str):
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=320, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, embedding_multiplier=12.0,
        )
    ).eval()  # fmt: skip
    qwen = make(tiny_folder)
    verbalizer = Verbalizer(model, qwen.tokenizer, qwen.prompt, 10.0)
    tokens, mask = verbalizer.respond(["a"])
    seen = seen_by_first_block(verbalizer, vectors(1), tokens, mask)
    assert torch.allclose(seen[:, verbalizer.prompt.position], normalize(vectors(1), 10.0), atol=1e-4)


@pytest.mark.parametrize("backend", ["engine", "hf"])
def test_teacher_forcing_gives_the_sampling_log_probs(verbalizer: Verbalizer, backend: str):
    activation = vectors()
    sampled = verbalizer.sample(activation, sampling_params(3, max_new_tokens=20, backend=backend), seed=1)
    assert sampled.log_probs is not None
    forced = verbalizer(activation.repeat_interleave(3, 0), sampled.tokens, sampled.mask)
    assert torch.allclose(forced, sampled.log_probs, atol=1e-4)
    assert sampled.tokens.shape[0] == len(sampled) == 12


def test_samples_packed_behind_one_prompt_equal_separate_rows(verbalizer: Verbalizer):
    """Log-probs and gradients, for samples of all lengths from one token up, across the windows of 8 tokens."""
    activation = vectors(3)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 300, (12, 14), generator=generator)
    lengths = torch.tensor([1, 14, 5, 2, 14, 14, 14, 14, 1, 1, 1, 3])
    mask = torch.arange(14) < lengths.unsqueeze(1)
    weight = torch.randn(12, 14, generator=generator)
    results = []
    for rows in (activation, activation.repeat_interleave(4, 0)):
        verbalizer.zero_grad()
        log_probs = verbalizer(rows, tokens, mask)
        (log_probs * weight).sum().backward()
        results.append((log_probs, [p.grad.clone() for p in verbalizer.parameters() if p.grad is not None]))
    (packed, packed_gradient), (alone, alone_gradient) = results
    assert torch.allclose(packed, alone, atol=1e-5)
    assert (packed[~mask] == 0).all()
    assert len(packed_gradient) == len(alone_gradient) > 0
    for one, other in zip(packed_gradient, alone_gradient, strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)


def test_answers_to_different_activations_packed_side_by_side_equal_separate_rows(
    verbalizer: Verbalizer, monkeypatch: pytest.MonkeyPatch
):
    """Log-probs and gradients, with answers of different lengths, after the beginning that their prompts share."""
    tokens, mask = verbalizer.respond(["a", "the quick brown fox jumps", "over", "the lazy dog"])
    activation = vectors()

    def run(rows: list[slice], together: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        monkeypatch.setattr("nla.models.packing.samples_per_row", lambda *_: together)
        verbalizer.zero_grad()
        log_probs = torch.cat([verbalizer(activation[row], tokens[row], mask[row]) for row in rows])
        (log_probs * torch.arange(1, 5).unsqueeze(1)).sum().backward()
        return log_probs.detach(), [p.grad.clone() for p in verbalizer.parameters() if p.grad is not None]

    alone, separate = run([slice(row, row + 1) for row in range(4)], 1)
    for together in (2, 4):
        packed, gradient = run([slice(None)], together)
        assert torch.allclose(packed, alone, atol=1e-5)
        for one, other in zip(gradient, separate, strict=True):
            assert torch.allclose(one, other, atol=1e-4, rtol=1e-3)


def test_an_activation_lost_between_answers_stops(qwen: Verbalizer, monkeypatch: pytest.MonkeyPatch):
    usual = Packing.inputs

    def lost(self: Packing, prompt: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
        return usual(self, prompt, fed.index_fill(0, self.first()[2:3], 0.0))

    monkeypatch.setattr(Packing, "inputs", lost)
    monkeypatch.setattr("nla.models.packing.samples_per_row", lambda *_: 2)
    tokens, mask = qwen.respond(["a", "b", "c", "d"])
    with pytest.raises(InjectionError, match="3 of 4 rows"):
        qwen(vectors(), tokens, mask)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("prefill", "TypeError: no such cache"),  # a model whose code rejects the engine's arguments
        ("advance", "differs by 0.0"),  # one whose attention does more than the engine's
    ],
)
def test_a_model_that_does_not_fit_the_engine_is_sampled_by_generate_with_one_warning(
    qwen: Verbalizer, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, broken: str, reason: str
):
    step = engine.advance
    stand_in = {"prefill": Mock(side_effect=TypeError("no such cache")), "advance": lambda *a: step(*a) * 1.01}[broken]
    monkeypatch.setattr(engine, broken, stand_in)
    unfit = Verbalizer(qwen.model, qwen.tokenizer, qwen.prompt, qwen.injection_scale)
    monkeypatch.undo()
    expected = qwen.sample(vectors(), sampling_params(max_new_tokens=8, temperature=0, backend="hf"))
    monkeypatch.setattr(engine, "sample", Mock(side_effect=AssertionError("the engine was asked")))
    for _ in range(2):
        assert torch.equal(
            unfit.sample(vectors(), sampling_params(max_new_tokens=8, temperature=0)).tokens, expected.tokens
        )
    messages = [str(w.message) for w in recwarn if "cannot be sampled by the engine" in str(w.message)]
    assert len(messages) == 1
    assert reason in messages[0]


def test_samples_must_share_activations_evenly(qwen: Verbalizer):
    tokens, mask = qwen.respond(["a", "b", "c"])
    with pytest.raises(InjectionError, match="3 samples"):
        qwen(vectors(2), tokens, mask)


def test_different_vectors_give_different_log_probs(qwen: Verbalizer):
    """Fault 27."""
    tokens, mask = qwen.respond(["It rains."] * 3)
    log_probs = qwen(vectors(3), tokens, mask)
    assert not torch.allclose(log_probs[0], log_probs[1], atol=1e-3)
    alone = qwen(vectors(3)[1:2], tokens[:1], mask[:1])
    assert torch.allclose(alone[0], log_probs[1], atol=1e-5)


def test_a_marker_in_the_answer_is_an_ordinary_token(qwen: Verbalizer):
    """Fault 25."""
    tokens, mask = qwen.respond([f"it says {MARKER}", "it says b"])
    assert (tokens == qwen.prompt.marker_id).sum() == 1
    seen = seen_by_first_block(qwen, vectors(2), tokens, mask)
    injected = normalize(vectors(2), 10.0)[:1]
    hits = ((seen[0] - injected).abs().amax(-1) < 1e-4).nonzero().flatten().tolist()
    assert hits == [qwen.prompt.position]
    assert qwen.parse(tokens, mask) == [None, "it says b"]


def test_padding_is_zero_and_changes_nothing(qwen: Verbalizer):
    tokens, mask = qwen.respond(["a", "It rains in the town."])
    both = qwen(vectors(2), tokens, mask)
    short = int(mask[0].sum())
    assert (both[0, short:] == 0).all()
    assert torch.allclose(qwen(vectors(2)[:1], tokens[:1, :short], mask[:1, :short])[0], both[0, :short], atol=1e-5)
    assert tokens[0, short - 1] == qwen.prompt.end_of_turn


def test_only_response_positions_reach_the_head(qwen: Verbalizer):
    tokens, mask = qwen.respond(["a", "It rains in the town."])
    rows = []
    handle = qwen.model.get_output_embeddings().register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape))
    qwen(vectors(2), tokens, mask)
    handle.remove()
    assert rows == [(int(mask.sum()), 32)]


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_zero_or_infinite_activations_stop(qwen: Verbalizer, bad: float):
    activation = vectors()
    activation[2] = bad
    with pytest.raises(InjectionError, match=r"1 of 4 activations.*row 2"):
        qwen.prompt_embeddings(activation)


def test_wrong_width_or_lost_marker_stop(qwen: Verbalizer):
    with pytest.raises(InjectionError, match="width 16"):
        qwen.prompt_embeddings(torch.randn(2, 16))
    qwen._prompt_tokens[qwen.prompt.position] = 5
    with pytest.raises(InjectionError, match="not found once"):
        qwen.prompt_embeddings(vectors())


def test_a_scale_far_off_warns_once_with_both_norms(tiny_folder: str, recwarn: pytest.WarningsRecorder):
    """Fault 27."""
    verbalizer = make(tiny_folder, scale=5.7 * 500)
    verbalizer.prompt_embeddings(vectors())
    verbalizer.prompt_embeddings(vectors())
    messages = [str(w.message) for w in recwarn if "injection_scale" in str(w.message)]
    assert len(messages) == 1
    assert "2.85e+03" in messages[0]
    assert "median norm 5." in messages[0]


def test_raw_injection(tiny_folder: str):
    verbalizer = make(tiny_folder, scale=None)
    rows = verbalizer.prompt_embeddings(vectors())
    assert torch.equal(rows[:, verbalizer.prompt.position], vectors())


def test_responses_parse_back(qwen: Verbalizer):
    texts = ["a", "It rains in the town.", "caf\u00e9 < bar"]
    tokens, mask = qwen.respond(texts)
    assert qwen.parse(tokens, mask) == texts


def test_cut_off_is_malformed(qwen: Verbalizer):
    tokens, mask = qwen.respond(["It rains."])
    length = int(mask.sum())
    assert qwen.parse(tokens[:, : length - 1], mask[:, : length - 1]) == [None]
    assert qwen.parse(tokens, mask & False) == [None]


def test_sampling_keeps_the_mode_and_turns_dropout_off(model_folders: dict[str, str]):
    verbalizer = make(model_folders["gpt2"])
    verbalizer.train()  # GPT-2 has dropout 0.1
    first = verbalizer.sample(vectors(), sampling_params(2, max_new_tokens=8), seed=3)
    assert verbalizer.training
    assert verbalizer.model.training
    second = verbalizer.eval().sample(vectors(), sampling_params(2, max_new_tokens=8), seed=3)
    assert torch.equal(first.tokens, second.tokens)


def test_gradient_reaches_model_and_checkpointing_agrees(qwen: Verbalizer):
    tokens, mask = qwen.respond(["It rains.", "b"])
    plain = qwen(vectors(2), tokens, mask).sum()
    plain.backward()
    weight = backbone.blocks(backbone.body(qwen.model))[0].mlp.up_proj.weight
    expected = weight.grad.clone()
    qwen.zero_grad()
    qwen.train()
    qwen.model.activation_checkpointing_enable()
    again = qwen(vectors(2), tokens, mask).sum()
    again.backward()
    assert torch.allclose(again, plain)
    assert torch.allclose(weight.grad, expected, atol=1e-5)


@pytest.fixture(params=["full", "lora"])
def trained(request: pytest.FixtureRequest, tiny_folder: str) -> Verbalizer:
    adapter = {"rank": 2, "alpha": 4.0, "dropout": 0.0} if request.param == "lora" else None
    return NLA.from_target(tiny_folder, 1, TEMPLATES, MARKER, 10.0, adapter=adapter).verbalizer


def test_reference_is_the_policy_at_freezing(trained: Verbalizer):
    tokens, mask = trained.respond(["It rains.", "b"])
    start = trained(vectors(2), tokens, mask)
    frozen = Reference(trained)
    keys = set(trained.state_dict())
    with frozen.active() as reference:
        expected = reference(vectors(2), tokens, mask)
    assert not expected.requires_grad
    assert kl_to_reference(start, expected, mask).item() == 0.0  # exactly

    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    start.sum().backward()
    optimizer.step()
    with frozen.active() as reference:
        assert torch.equal(reference(vectors(2), tokens, mask), expected)
    moved = trained(vectors(2), tokens, mask)
    assert not torch.equal(moved, expected)
    assert kl_to_reference(moved, expected, mask).item() > 0
    assert set(trained.state_dict()) == keys


def test_autocast_does_not_serve_the_reference_with_the_policys_weights(trained: Verbalizer):
    """Autocast keeps casts of weights by tensor, and adapters are swapped inside their tensors."""
    tokens, mask = trained.respond(["It rains.", "b"])
    frozen = Reference(trained)
    with torch.autocast("cpu", torch.bfloat16):
        start = trained(vectors(2), tokens, mask).detach()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        moved = trained(vectors(2), tokens, mask).detach()
        with frozen.active() as reference:
            expected = reference(vectors(2), tokens, mask)
        again = trained(vectors(2), tokens, mask).detach()
    assert torch.equal(expected, start)
    assert torch.equal(again, moved) and not torch.equal(moved, expected)


def test_backward_after_visiting_the_reference(trained: Verbalizer):
    """The policy's graph is built first, the reference visited, then the backward runs."""
    tokens, mask = trained.respond(["It rains.", "b"])
    frozen = Reference(trained)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    gradients = []
    for visit in (False, True):
        trained.zero_grad()
        loss = trained(vectors(2), tokens, mask).sum()
        if visit:
            with frozen.active() as reference:
                reference(vectors(2), tokens, mask)
        loss.backward()
        gradients.append([p.grad.clone() for p in trained.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_reference_restores_mode_and_model_after_an_error(trained: Verbalizer):
    frozen = Reference(trained)
    trained.train()
    before = trained.model
    with pytest.raises(InjectionError), frozen.active() as reference:
        reference(0 * vectors(1), *trained.respond(["a"]))
    assert trained.model is before
    assert trained.training


@pytest.mark.parametrize("backend", ["engine", "hf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_are_no_tokens_are_never_drawn(backend: str, temperature: float, tmp_path: Path) -> None:
    """As Qwen's: the embedding has more rows than the tokenizer has tokens. Here the others are the likeliest."""
    torch.manual_seed(0)
    model = make_model("llama")
    model.resize_token_embeddings(VOCAB + 77, mean_resizing=False)
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[VOCAB:] *= 40
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    verbalizer, activation = make(str(tmp_path)), vectors(8)
    assert verbalizer.vocabulary == VOCAB
    found = verbalizer.sample(activation, sampling_params(4, 20, temperature=temperature, backend=backend))
    assert found.tokens.numel() > 300 and int(found.tokens.max()) < VOCAB
    with torch.no_grad():
        forced = verbalizer(activation, found.tokens, found.mask)
    assert found.log_probs is not None
    torch.testing.assert_close(found.log_probs, forced, atol=1e-4, rtol=1e-4)
    assert float(forced[found.mask].mean()) > -2 * math.log(VOCAB), "the probability is that among tokens"


def test_where_every_id_is_a_token_nothing_is_left_out(nla: NLA) -> None:
    assert nla.verbalizer.vocabulary is None

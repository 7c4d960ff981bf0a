"""A direction added to the model: by hand, against a forward pass written out, and how often the hook fires."""

import pytest
import torch
from torch import Tensor

from nla.errors import ConfigError, DataError, ModelError
from nla.models.backbone import blocks, body
from nla.models.pair import NLA
from nla.models.steering import (
    SteeredPrompts,
    added,
    edit_direction,
    random_direction,
    replaced,
    steered_logits,
    unit_difference,
)
from nla.models.target import Target

PROMPTS = [[7, 8, 9, 40, 41], [20, 21, 22], [50]]


def direction(rows: int = 3) -> Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(1))


def naive(target: Target, tokens: list[int], places: list[int], vector: Tensor, scale: float) -> Tensor:
    """Logits of one prompt, with the states changed between the blocks by hand."""
    caught: dict[str, Tensor] = {}

    def change(_module: object, inputs: tuple) -> tuple:
        hidden = inputs[0].clone()
        for place in places:
            hidden[0, place] += scale * hidden[0, place].norm() * vector
        caught["hidden"] = hidden
        return (hidden, *inputs[1:])

    handle = blocks(body(target.model))[target.layer + 1].register_forward_pre_hook(change)
    try:
        return target.model(torch.tensor([tokens]), use_cache=False).logits[0].detach()
    finally:
        handle.remove()


def test_the_edit_direction_is_the_difference_of_units_by_hand(nla: NLA) -> None:
    vectors = {"It rains.": torch.tensor([3.0, 4.0]), "It snows.": torch.tensor([0.0, 10.0])}
    nla.reconstruct = lambda texts, batch_size=64: torch.stack([vectors[text] for text in texts])  # type: ignore
    found = edit_direction(nla, ["It rains.", "It snows."], ["It snows.", "It snows."])
    torch.testing.assert_close(found, torch.tensor([[-0.6, 0.2], [0.0, 0.0]]))
    with pytest.raises(DataError, match="1 edited texts for 2"):
        edit_direction(nla, ["a", "b"], ["a"])


def test_added_by_hand() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    found = added(hidden, torch.tensor([[True, False]]), torch.tensor([[0.0, 2.0]]), 0.5)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 9.0], [1.0, 0.0]]]))  # 4 + 0.5 * 5 * 2
    half = added(hidden.bfloat16(), torch.tensor([[True, True]]), torch.tensor([[0.0, 2.0]]), 0.5)
    assert half.dtype == torch.bfloat16 and half[0, 1].tolist() == [1.0, 1.0]


def test_a_random_direction_has_the_norms_and_no_relation() -> None:
    wanted = unit_difference(torch.randn(5, 512), torch.randn(5, 512))
    found = random_direction(wanted, 3)
    torch.testing.assert_close(found.norm(dim=1), wanted.norm(dim=1))
    assert torch.equal(found, random_direction(wanted, 3)) and not torch.equal(found, random_direction(wanted, 4))
    assert float((found * wanted).sum(1).abs().max() / 2) < 0.25


def test_whole_words_are_replaced() -> None:
    assert replaced("a cat, a catfish, a cat.", "cat", "dog") == "a dog, a catfish, a dog."
    assert replaced("a cat, a cat.", "cat", "dog", count=1) == "a dog, a cat."
    assert replaced(r"50% off", "50%", r"\1 of") == r"\1 of off"
    with pytest.raises(ConfigError, match="'at' is no word of the explanation 'a cat'"):
        replaced("a cat", "at", "it")


@pytest.mark.parametrize("onward", [False, True])
def test_steered_logits_are_those_of_a_forward_pass_by_hand(family_folder: str, onward: bool) -> None:
    target = Target.from_pretrained(family_folder, 1)
    vector, tokens = direction(2), torch.tensor([PROMPTS[0], [20, 21, 22, 0, 0]])
    found = steered_logits(target, tokens, torch.tensor([2, 1]), vector, 0.7, onward)
    for row, (ids, first) in enumerate(((PROMPTS[0], 2), (PROMPTS[1], 1))):
        places = list(range(first, len(ids))) if onward else [first]
        torch.testing.assert_close(
            found[row, : len(ids)], naive(target, ids, places, vector[row], 0.7), atol=2e-4, rtol=1e-3
        )
    plain = target.model(tokens, use_cache=False).logits
    torch.testing.assert_close(found[0, :2], plain[0, :2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0, 2:], plain[0, 2:], atol=1e-2)


@pytest.mark.parametrize("position", [None, [2, 1, 0]])
@pytest.mark.parametrize("onward", [False, True])
def test_prompts_read_once_give_the_same_logits(family_folder: str, position: list[int] | None, onward: bool) -> None:
    target = Target.from_pretrained(family_folder, 1)
    prompts, vector = SteeredPrompts(target, PROMPTS, position), direction()
    first = [len(ids) - 1 for ids in PROMPTS] if position is None else position
    for _ in range(2):  # a direction leaves nothing behind
        for scale in (0.7, 0.0):
            found = prompts.next_logits(vector, scale, onward)
            for row, ids in enumerate(PROMPTS):
                places = list(range(first[row], len(ids))) if onward else [first[row]]
                wanted = naive(target, ids, places, vector[row], scale)[-1]
                torch.testing.assert_close(found[row], wanted, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(prompts.next_logits(), found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("onward", [False, True])
def test_a_greedy_continuation_is_one_written_out_token_by_token(family_folder: str, onward: bool) -> None:
    target = Target.from_pretrained(family_folder, 1)
    target.model.generation_config.eos_token_id = None
    vector, prompts = direction(), SteeredPrompts(target, PROMPTS)
    for scale in (1.5, 0.0):
        found = prompts.continuations(vector, scale, tokens=6, onward=onward)
        for row, ids in enumerate(PROMPTS):
            written = list(ids)
            for _ in range(6):
                places = list(range(len(ids) - 1, len(written))) if onward else [len(ids) - 1]
                written.append(int(naive(target, written, places, vector[row], scale)[-1].argmax()))
                if written[-1] == target.tokenizer.eos_token_id:
                    written.pop()
                    break
            assert found[row] == target.tokenizer.decode(written[len(ids) :], skip_special_tokens=True)
    assert prompts.continuations(tokens=6) == found  # a scale of 0 is no steering


def test_samples_of_a_seed_are_the_same_and_end_at_the_end_of_text(target: Target) -> None:
    prompts = SteeredPrompts(target, PROMPTS)
    once = prompts.continuations(direction(), tokens=8, temperature=1.0, seed=5)
    assert once == prompts.continuations(direction(), tokens=8, temperature=1.0, seed=5)
    assert once != prompts.continuations(direction(), tokens=8, temperature=1.0, seed=6)
    assert prompts.continuations(tokens=0) == ["", "", ""]


def test_an_edit_that_is_not_made_as_often_as_expected_is_an_error(target: Target) -> None:
    tokens = torch.tensor([[7, 8]])
    with pytest.raises(ModelError, match="edited 0 times, expected 1"), target.edited(lambda hidden: hidden):
        pass
    with pytest.raises(ModelError, match="edited 2 times, expected 1"), target.edited(lambda hidden: hidden):
        assert target.model(tokens).logits.equal(target.model(tokens).logits)
    with target.edited(lambda hidden: hidden, passes=2):
        target.model(tokens)
        target.model(tokens)
    block = blocks(body(target.model))[target.layer]
    assert not block._forward_hooks  # none left behind, whatever happened
    with pytest.raises(ZeroDivisionError), target.edited(lambda hidden: hidden):
        raise ZeroDivisionError
    assert not block._forward_hooks


def test_positions_must_be_in_the_prompt(target: Target) -> None:
    with pytest.raises(DataError, match="position 5 of prompt 0: it has 5 tokens"):
        SteeredPrompts(target, PROMPTS, [5, 0, 0])
    with pytest.raises(DataError, match="position -1 of prompt 0"):
        SteeredPrompts(target, [[]])

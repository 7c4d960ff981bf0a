"""Activations read from text, and a vector put back in."""

import pytest
import torch

from nla.errors import ConfigError, DataError
from nla.models import backbone
from nla.models.pair import NLA
from nla.models.target import Target

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Tom", "Tom walks to the harbour."]


def test_last_and_all_skip_special_tokens(model_folders: dict[str, str]):
    target = Target.from_pretrained(model_folders["gemma3"], 0)
    ids = target.tokenizer(TEXTS[0])["input_ids"]
    assert ids[0] == target.tokenizer.bos_token_id
    reading = target.read(TEXTS[:1], "all")
    assert reading.position == list(range(1, len(ids)))
    assert reading.text[-1] == TEXTS[0]
    assert "".join(reading.token) == TEXTS[0]
    assert target.read(TEXTS, "last").text == TEXTS


def test_given_positions(target: Target):
    reading = target.read(TEXTS, [[0, -1], [0], []])
    assert reading.document == [0, 0, 1]
    assert reading.position[0] == 0
    assert reading.text[1] == TEXTS[0]
    assert torch.allclose(target.read(TEXTS, [-1, -1, -1]).activation, target.read(TEXTS).activation)


@pytest.mark.parametrize(
    ("texts", "positions", "message"),
    [
        (["Tom"], [[99]], "position 99"),
        (["Tom"], [[0], [0]], "one entry for each"),
        (["Tom"], "first", "expected 'last'"),
        (["Tom", ""], "last", "text 1 holds no token"),
    ],
)
def test_bad_positions(target: Target, texts: list[str], positions, message: str):
    with pytest.raises(DataError, match=message):
        target.read(texts, positions)


def test_padding_cannot_be_read(target: Target):
    tokens, mask = torch.ones(1, 3, dtype=torch.long), torch.tensor([[True, True, False]])
    with pytest.raises(DataError, match="padding"):
        target(tokens, mask, torch.tensor([0]), torch.tensor([2]))


def test_no_texts(target: Target):
    assert target.read([]).activation.shape == (0, target.d_model)


def test_how_documents_are_batched_changes_nothing(target: Target, monkeypatch: pytest.MonkeyPatch):
    together = target.read(TEXTS, "all").activation
    monkeypatch.setattr("nla.models.target.TOKENS_AT_ONCE", 1)
    assert torch.allclose(target.read(TEXTS, "all").activation, together, atol=1e-5)
    monkeypatch.setattr("nla.models.target.TEXTS_AT_ONCE", 2)
    assert torch.allclose(target.read(TEXTS, "all").activation, together, atol=1e-5)


def test_only_what_is_asked_for_is_run(target: Target, monkeypatch: pytest.MonkeyPatch):
    """Not run: documents without a position, tokens after the last position, and blocks above the layer."""
    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _m, args, number=number: seen.append((number, args[0].shape[:2])))
        for number, block in enumerate(backbone.blocks(backbone.body(target.model)))
    ]
    tokens = torch.randint(5, 300, (3, 20))
    target(tokens, torch.ones(3, 20, dtype=torch.bool), torch.tensor([0, 2]), torch.tensor([4, 6]))
    for handle in handles:
        handle.remove()
    assert seen == [(number, (2, 7)) for number in range(target.layer + 1)]


def test_several_layers_in_one_pass(family_folder: str):
    target = Target.from_pretrained(family_folder, 1)
    tokens, mask = torch.randint(5, 300, (3, 20)), torch.ones(3, 20, dtype=torch.bool)
    row, position = torch.tensor([2, 0, 1, 2]), torch.tensor([19, 3, 11, 0])
    together = target(tokens, mask, row, position, layers=[2, 0])
    for index, layer in enumerate((2, 0)):
        alone = Target.from_pretrained(family_folder, layer)(tokens, mask, row, position)
        assert torch.allclose(together[:, index], alone, atol=1e-5)
    with pytest.raises(ConfigError, match="layer"):
        target(tokens, mask, row, position, layers=[9])


def test_blocks_above_the_layer_do_not_run(target: Target):
    blocks = backbone.blocks(backbone.body(target.model))
    handle = blocks[2].register_forward_hook(lambda *_: pytest.fail("block 2 ran"))
    try:
        target.read(TEXTS)
    finally:
        handle.remove()


def test_target_stays_frozen(target: Target):
    target.train()
    assert not target.model.training
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_wrong_layer(tiny_folder: str):
    with pytest.raises(ConfigError, match="0 to 2"):
        Target.from_pretrained(tiny_folder, 7)


def test_splicing_the_activation_itself_changes_nothing(family_folder: str):
    target = Target.from_pretrained(family_folder, 1)
    tokens = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    position, rows = torch.tensor([4, 8]), torch.arange(2)
    activation = target(tokens, torch.ones_like(tokens, dtype=torch.bool), rows, position)
    plain = target.model(tokens).logits
    assert torch.allclose(target.splice(tokens, position, 7.0 * activation), plain, atol=1e-4)  # norm restored
    assert torch.allclose(target.splice(tokens, position, activation, rescale=False), plain, atol=1e-5)
    other = target.splice(tokens, position, -activation)
    assert torch.allclose(other[0, :4], plain[0, :4], atol=1e-5)
    assert not torch.allclose(other[0, 4:], plain[0, 4:], atol=1e-2)
    assert torch.allclose(target.model(tokens).logits, plain)  # no hook left behind


def test_reading_several_layers_again_and_again_changes_nothing(family_folder: str):
    """A hook left on the shared blocks would shift the layers of the next reading."""
    target = Target.from_pretrained(family_folder, layer=1)
    tokens = torch.randint(5, 300, (2, 9))
    mask, row, position = torch.ones(2, 9, dtype=torch.bool), torch.tensor([0, 1]), torch.tensor([8, 3])
    first = target(tokens, mask, row, position, layers=[0, 1])
    for _ in range(2):
        torch.testing.assert_close(target(tokens, mask, row, position, layers=[0, 1]), first)
    torch.testing.assert_close(target(tokens, mask, row, position), first[:, 1])
    states = target.model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[2][row, position], first[:, 1], atol=1e-4, rtol=1e-4)


def test_surprisal_is_the_models_own_loss_and_texts_do_not_touch_each_other(target: Target) -> None:
    texts = ["It rains.", "Tom walks to the town and the dog jumps.", "dog"]
    together = target.surprisal(texts)
    for text, (nats, count) in zip(texts, together, strict=True):
        ids = torch.tensor([target.tokenizer(text)["input_ids"]])
        assert count == ids.shape[1] - 1
        if count:
            loss = target.model(input_ids=ids, labels=ids).loss
            assert nats == pytest.approx(count * float(loss), rel=1e-4)
    assert target.surprisal([]) == []


def test_one_text_is_not_read_as_its_characters(target: Target, nla: NLA) -> None:
    for read in (target.read, target.surprisal, nla.reconstruct):
        with pytest.raises(DataError, match=r"'It rains\.' is one text .* put it in a list, \[text\]"):
            read("It rains.")
    with pytest.raises(DataError, match="is one text"):
        nla.score(torch.zeros(9, 32), "It rains.")

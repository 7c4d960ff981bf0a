"""The measures of a target's quality (benchmarks/): n-grams, facts used, facts carried."""

import pytest
import torch
from ngrams import NGrams
from probes import Labels, choose_positions, label, majority, probe, ridge_r2
from quality import Annotated, Mention, annotate, lexicon, observe, states, used
from transformers import PreTrainedTokenizerBase

from nla.data.world import WorldSource
from nla.data.world.statements import STEMS
from nla.errors import DataError
from nla.models.backbone import load_model
from nla.pretraining.loop import Architecture
from nla.pretraining.tokenizer import train_tokenizer

TINY = Architecture(
    d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, d_ff=16, vocab=1792, context=512, initializer_range=0.06
)


@pytest.fixture(scope="module")
def source() -> WorldSource:
    return WorldSource({"pretrain": 60, "test": 12})


@pytest.fixture(scope="module")
def small_tokenizer(source: WorldSource) -> PreTrainedTokenizerBase:
    return train_tokenizer([d.text for d in source.documents("pretrain")], 700, tuple(STEMS.values()))


# N-grams


def test_ngrams_by_hand():
    """Tokens 0 0 1 0: unigram counts the three after the first; (0 -> 0, 1) once each, (1 -> 0) once."""
    found = NGrams([[0, 0, 1, 0]], vocab=3, order=2).probabilities([[0, 1], [1, 0], [2, 0]])
    unigram_0, unigram_1 = 3 / 6, 2 / 6
    assert found[0].tolist() == pytest.approx([unigram_1, unigram_0, unigram_0])
    assert found[1].tolist() == pytest.approx([(1 + 2 * unigram_1) / 4, (1 + unigram_0) / 2, unigram_0])


def test_ngrams_are_distributions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 5, (30, 12), generator=generator).tolist()
    model = NGrams(rows, vocab=6, order=4)
    for history in ([0], [1, 2], [4, 4, 4], [0, 1, 2, 3, 4], [5, 5, 5]):
        last = torch.stack([model.probabilities([[*history, token]])[:, -1] for token in range(6)])
        assert torch.allclose(last.sum(0), torch.ones(4, dtype=torch.float64))


def test_ngrams_refuse_nothing_and_too_much():
    with pytest.raises(DataError, match="two tokens"):
        NGrams([[1], []], vocab=3, order=2)
    with pytest.raises(DataError, match="smaller order"):
        NGrams([[1, 2]], vocab=200_000, order=4)


# Used


def test_states_follow_the_layer_convention(tiny_folder: str):
    model = load_model(tiny_folder)
    tokens = torch.randint(5, 300, (2, 9))
    with torch.no_grad():
        logits, hidden = states(model, tokens)
        reference = model(input_ids=tokens, output_hidden_states=True)
    assert torch.allclose(logits, reference.logits, atol=1e-6)
    for index in range(3):  # Hugging Face's last one is after the final norm
        assert torch.allclose(hidden[index], reference.hidden_states[index], atol=1e-6)
    assert torch.allclose(model.model.norm(hidden[3]), reference.hidden_states[3], atol=1e-6)


def test_annotate_finds_the_token_of_each_mention(small_tokenizer: PreTrainedTokenizerBase):
    text = "Then Tom came to the harbour."
    mentions = [Mention(text.index("Tom"), "hero", "Tom"), Mention(text.index("harbour"), "place", "harbour")]
    found = annotate(small_tokenizer, [("a", text, mentions)])[0]
    for token, _, value in found.mentions:
        assert text[: found.ends[token]].endswith(value[: found.ends[token] - text.index(value)])
        assert found.ends[token - 1] <= text.index(value) < found.ends[token]


HAND = [Annotated("d", "", [7, 1, 7, 7, 1, 2], [0] * 6, ((1, "mood", "sad"), (4, "mood", "sad"), (5, "mood", "sad")))]


def test_lexicon_leaves_out_what_two_values_share():
    other = Annotated("e", "", [2, 3], [0] * 2, ((0, "mood", "calm"), (1, "mood", "calm")))
    words = lexicon([*HAND, other], vocab=8)
    assert words.values == (("mood", "calm"), ("mood", "sad"))
    assert words.membership.nonzero().tolist() == [[1, 1], [3, 0]]


def test_used_by_hand():
    """Revealed at token 1; tokens 4 and 5 are at least 3 later, and 4 alone has no mention within 3 tokens."""
    words = lexicon([*HAND, Annotated("e", "", [0, 3], [0] * 2, ((1, "mood", "calm"),))], vocab=8)
    mass = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.2, 0.6], [0.1, 0.4]])  # calm, sad; predicting 1..5
    row = used(HAND, words, mass, torch.full((8,), 0.125), distance=3)["mood"]
    assert row["true"] == pytest.approx(0.5)
    assert row["wrong"] == pytest.approx(0.15)
    assert row["share"] == pytest.approx((0.75 + 0.8) / 2)
    assert row["share_unrepeated"] == pytest.approx(0.75)
    assert row["unigram"] == pytest.approx(0.25)
    assert (row["n"], row["n_unrepeated"]) == (2, 1)


def test_observe_does_not_depend_on_batching(source: WorldSource, small_tokenizer: PreTrainedTokenizerBase):
    documents = annotate(small_tokenizer, [(d.id, d.text, [Mention(0, "x", "y")]) for d in source.documents("test")])
    words = lexicon(documents, len(small_tokenizer))
    torch.manual_seed(0)
    model = TINY.build(small_tokenizer).eval()
    positions = choose_positions(documents, 3)
    one, many = (observe(model, documents, words, positions, batch_size=size) for size in (1, 5))
    assert one.loss.shape == (sum(len(d.tokens) - 1 for d in documents),)
    assert one.activation.shape == (3, 36, 16)
    for left, right in ((one.loss, many.loss), (one.mass, many.mass), (one.activation, many.activation)):
        assert torch.allclose(left, right, atol=1e-5)


# Carried


def test_positions_are_keyed_by_document_and_have_context(
    source: WorldSource, small_tokenizer: PreTrainedTokenizerBase
):
    documents = annotate(small_tokenizer, [(d.id, d.text, []) for d in source.documents("test")])
    chosen = choose_positions(documents, 8)
    assert choose_positions(documents[3:5], 8) == chosen[3:5]
    assert all(len(set(places)) == 8 and min(places) >= 23 for places in chosen)
    labels = label(documents, chosen, source.facts)
    assert labels.document.tolist() == [index for index in range(12) for _ in range(8)]
    row = dict(source.facts(documents[0].id, documents[0].text[: documents[0].ends[chosen[0][0]]]))
    for kind, index in zip(labels.kinds, labels.index[0].tolist()):
        assert (None if index < 0 else labels.values[kind][index]) == row.get(kind)
    assert labels.one_hot().sum(1)[0] == len(row)


def separable(count: int = 400) -> tuple[torch.Tensor, Labels, torch.Tensor]:
    """Activations that hold kind "a" (3 values) in one direction each, and nothing of kind "b"."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 3, (count, 2), generator=generator)
    index[:, 1] = (index[:, 1] > 1).long()
    index[::10, 0] = -1
    noise = 0.3 * torch.randn(count, 8, generator=generator)
    activation = noise + torch.nn.functional.one_hot(index[:, 0] + 1, 8).float() * 3
    labels = Labels(("a", "b"), {"a": ("x", "y", "z"), "b": ("u", "v")}, index, torch.arange(count))
    return activation, labels, torch.arange(count) < count * 0.75


def test_probe_reads_what_is_there_and_nothing_else():
    activation, labels, training = separable()
    accuracy, chance = probe(activation, labels, training), majority(labels, training)
    assert accuracy["a"] > 0.98
    assert chance["a"] < 0.5
    assert abs(accuracy["b"] - chance["b"]) < 0.15


def test_ridge_explains_what_depends_on_the_features():
    activation, labels, training = separable()
    noise = torch.randn(activation.shape, generator=torch.Generator().manual_seed(1))
    from_facts = ridge_r2(labels.one_hot(), torch.stack([activation, noise]), training)
    assert from_facts[0] > 0.6
    assert from_facts[1] < 0.05
    itself = ridge_r2(torch.nn.functional.normalize(activation, dim=1), activation[None], training, penalty=1e-6)
    assert itself[0] == pytest.approx(1, abs=1e-4)

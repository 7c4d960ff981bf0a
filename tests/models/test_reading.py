"""What a person does in a notebook: any vector, a chat, another library's tensors, two pairs side by side."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.models import MARKER, TEMPLATES
from support.stages import batch, fit, joint

import nla as package
from nla.core.summary import FILE, ActivationSummary, unusual
from nla.errors import DataError, ReleaseError
from nla.models.pair import NLA
from nla.models.reading.chat import read_chat, render
from nla.models.reading.comparison import compare
from nla.models.reading.tensors import check_hook, from_hook
from nla.models.target import Target
from nla.training.callbacks import Summary

TEXT = "Tom walks to the harbour. The quick brown fox jumps over the lazy dog."
CHAT = [
    {"role": "user", "content": "Tom walks to the town."},
    {"role": "assistant", "content": "The dog jumps. Tom sleeps."},
]


def spread(rows: int = 200) -> torch.Tensor:
    """Activations around a common mean, like those of language models."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.ones(32) + torch.randn(rows, 32, generator=generator)


def test_a_summary_by_hand() -> None:
    summary = ActivationSummary.of(torch.tensor([[3.0, 4.0], [3.0, -4.0], [6.0, 0.0]]))
    assert torch.equal(summary.mean, torch.tensor([4.0, 0.0]))
    assert summary.norm.tolist() == pytest.approx([5.0, 5.0, 6.0], abs=1e-2)
    assert summary.cosine.tolist() == pytest.approx([0.6, 0.6, 1.0], abs=1e-2)
    # half the median norm from the mean, along the direction whatever its length
    assert torch.allclose(summary.on_mean(torch.tensor([[0.0, 9.0]])), torch.tensor([[4.0, 2.5]]))
    with pytest.raises(DataError, match="at least two"):
        ActivationSummary.of(torch.ones(1, 4))


def test_vectors_unlike_training_are_reported() -> None:
    known = spread()
    summary = ActivationSummary.of(known)
    assert unusual(known, summary, 5.0) == []
    (norm,) = unusual(torch.cat([known[:2], 10 * known[:1]]), summary, 5.0)
    assert norm.startswith("1 of 3 vectors (rows 2) have a norm far from training")
    difference = known[:1] - known[1:2]
    difference *= known[0].norm() / difference.norm()
    (direction,) = unusual(difference, summary, 5.0)
    assert "cosine to the training mean" in direction and "on_mean" in direction
    assert unusual(summary.on_mean(difference), summary, 5.0) == []
    # without a summary the injection scale replaces the norm
    assert unusual(known, None, 20.0) == []
    (scaled,) = unusual(known / known.norm(dim=-1, keepdim=True), None, 20.0)
    assert "injection scale is 20" in scaled
    assert unusual(known / 1e3, None, None) == []


def test_explaining_warns_once_per_reason_and_continues(nla: NLA) -> None:
    nla.summary = ActivationSummary.of(spread())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nla.explain(spread()[:2], max_new_tokens=2, best_of=2)
    with pytest.warns(UserWarning, match="cosine to the training mean far from training") as said:
        assert len(nla.explain(-spread()[:2], max_new_tokens=2, best_of=2)) == 2
    assert len(said) == 1


def test_the_summary_is_saved_with_the_pair(nla: NLA, tmp_path: Path) -> None:
    nla.save_pretrained(tmp_path / "without")
    assert NLA.from_pretrained(tmp_path / "without").summary is None
    nla.summary = ActivationSummary.of(spread())
    nla.save_pretrained(tmp_path / "nla")
    summary = NLA.from_pretrained(tmp_path / "nla").summary
    assert summary is not None and torch.equal(summary.mean, nla.summary.mean)
    assert torch.equal(summary.norm, nla.summary.norm) and torch.equal(summary.cosine, nla.summary.cosine)
    path = tmp_path / "nla/verbalizer" / FILE
    path.write_bytes(b"nothing")
    with pytest.raises(ReleaseError, match="cannot be read.*optional"):
        NLA.from_pretrained(tmp_path / "nla")
    ActivationSummary.of(torch.randn(5, 8)).save(tmp_path / "nla/verbalizer")
    with pytest.raises(ReleaseError, match="expected a mean of width 32"):
        NLA.from_pretrained(tmp_path / "nla")


def test_training_leaves_a_summary_of_what_it_read(nla: NLA, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch
    import support.stages

    trainer = lightning.pytorch.Trainer
    monkeypatch.setattr(support.stages, "Trainer", lambda **options: trainer(**options, callbacks=[Summary(6)]))
    batches = [batch(seed=3), batch(seed=4)]
    fit(joint(nla, target, steps=2), 2, batches)
    assert nla.summary is not None
    expected = torch.cat([one.activation for one in batches])[:6].mean(0)
    assert torch.allclose(nla.summary.mean, expected)


@pytest.mark.parametrize("where", ["user", "assistant"])
def test_a_role_is_read_at_its_words(target: Target, where: str) -> None:
    reading = read_chat(target, CHAT, where)
    words = "".join(reading.token).strip()
    assert words == next(m["content"] for m in CHAT if m["role"] == where)


def test_spans_of_a_chat(target: Target) -> None:
    rendered = render(target, CHAT)
    twice = read_chat(target, CHAT, ["Tom"])
    assert "".join(twice.token).replace(" ", "") == "TomTom"
    start = rendered.index("dog jumps")
    by_place = read_chat(target, CHAT, [(start, start + len("dog jumps"))])
    by_text = read_chat(target, CHAT, ["dog jumps"])
    assert by_place.position == by_text.position and torch.equal(by_place.activation, by_text.activation)
    for text, token in zip(by_text.text, by_text.token, strict=True):
        assert text.endswith(token)


def test_a_chat_is_read_as_the_template_renders_it(target: Target) -> None:
    everything = read_chat(target, CHAT)
    ids = target.tokenizer(render(target, CHAT), add_special_tokens=False)["input_ids"]
    hidden = target.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[target.layer + 1][0]
    assert torch.allclose(everything.activation, hidden[everything.position], atol=1e-4)
    assert not set(everything.token) & set(target.tokenizer.all_special_tokens)
    assert read_chat(target, CHAT, "last").position == everything.position[-1:]
    longer = read_chat(target, CHAT[:1], "all", generation_prompt=True)
    assert longer.text[-1].rstrip().endswith("assistant")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("system", "where='system': expected 'all', 'last', a list of spans, or a role"),
        (["zebra"], "span 'zebra' does not occur"),
        ([(5, 10_000)], "the rendered chat has"),
    ],
)
def test_a_span_missing_from_the_chat_is_named(target: Target, where: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_chat(target, CHAT, where)  # type: ignore[arg-type]


def test_without_a_template_there_is_no_chat(tiny_folder: str) -> None:
    bare = Target.from_pretrained(tiny_folder, 1)
    bare.tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        read_chat(bare, CHAT)


def hidden_states(target: Target, text: str = TEXT) -> tuple[torch.Tensor, ...]:
    ids = torch.tensor([target.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return target.model(ids, output_hidden_states=True).hidden_states


def test_another_librarys_tensor_is_recognised(target: Target) -> None:
    states = hidden_states(target)
    match = check_hook(target, TEXT, states[2])
    assert (match.block, match.shift, match.centered) == (1, 0, False) and match.right
    reading = from_hook(target, TEXT, states[2][0])
    target_reading = target.read([TEXT], "all")
    assert reading.token == target_reading.token and torch.allclose(
        reading.activation, target_reading.activation, atol=1e-4
    )


def test_off_by_one_is_named(target: Target) -> None:
    states = hidden_states(target)
    before, embeddings = check_hook(target, TEXT, states[1]), check_hook(target, TEXT, states[0])
    assert (before.block, embeddings.block) == (0, -1)
    assert str(before) == "equals the output of block 0; the pair reads block 1: hook 1 block later"
    assert "the embeddings" in str(embeddings) and "2 blocks later" in str(embeddings)
    with pytest.raises(DataError, match="the tensor equals the output of block 0"):
        from_hook(target, TEXT, states[1])


def test_centred_bfloat16_and_foreign_tensors(target: Target) -> None:
    wanted = hidden_states(target)[2]
    centred = check_hook(target, TEXT, wanted - wanted.mean(-1, keepdim=True))
    assert (centred.block, centred.centered, centred.right) == (1, True, False)
    assert "from_pretrained_no_processing" in str(centred)
    assert check_hook(target, TEXT, wanted.bfloat16()).right
    foreign = check_hook(target, TEXT, torch.randn_like(wanted))
    assert not foreign.right and "equals no block's output" in str(foreign)
    with pytest.raises(DataError, match=r"expected \[time, 32\]"):
        check_hook(target, TEXT, torch.randn(4, 31))
    with pytest.raises(DataError, match="read the same text"):
        check_hook(target, TEXT, wanted[:, :3])


def test_a_missing_or_added_first_token_is_found(model_folders: dict[str, str]) -> None:
    target = Target.from_pretrained(model_folders["gemma3"], 1)  # its tokenizer puts a BOS before every text
    wanted = hidden_states(target)[2][0]
    match = check_hook(target, TEXT, wanted[1:])
    assert (match.block, match.shift) == (1, 1) and match.right
    assert from_hook(target, TEXT, wanted[1:]).token[0] == target.read([TEXT], "all").token[0]
    added = check_hook(target, TEXT, torch.cat([torch.randn(1, 32), wanted]))
    assert (added.block, added.shift) == (1, -1) and added.right
    assert len(from_hook(target, TEXT, torch.cat([torch.randn(1, 32), wanted]))) == len(wanted)


def test_two_pairs_side_by_side(nla: NLA, target: Target, model_folders: dict[str, str]) -> None:
    other = NLA.from_target(model_folders["gemma3"], 0, TEMPLATES, MARKER)
    foreign = Target.from_pretrained(model_folders["gemma3"], 0)
    comparison = compare(
        {"one": (nla, target), "two": (other, foreign)}, [TEXT, TEXT], [9, len(TEXT)], max_new_tokens=4
    )
    assert len(comparison) == 2 and comparison.text == ["Tom walks", TEXT]
    assert set(comparison.explanation) == set(comparison.cosine) == {"one", "two"}
    activation = target.read(["Tom walks"]).activation
    assert comparison.explanation["one"][0] == nla.explain(activation, temperature=0.0, max_new_tokens=4)[0][0]
    assert "one (" in str(comparison) and "two (" in str(comparison)
    with pytest.raises(DataError, match="two: the pair explains layer 0"):
        compare({"one": (nla, target), "two": (other, target)}, [TEXT])
    with pytest.raises(DataError, match="give one for each"):
        compare({"one": (nla, target)}, [TEXT], [1, 2])


def test_reading_imports_neither_lightning_nor_hydra() -> None:
    names = list(package.__all__)
    code = f"import sys, nla; [getattr(nla, n) for n in {names}]; " + (
        "print([m for m in ('lightning', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr

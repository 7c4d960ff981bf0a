"""Cases 26 and 30 to 37 of the fault list: what stops a run before its figures go wrong unnoticed."""

import copy
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import sampling_params
from support.stages import HEAD, batch, completions_of, fit, joint, options, same, weights

from nla.core.records import ActivationBatch, Rollout
from nla.errors import InjectionError, TrainingError
from nla.models.pair import NLA
from nla.models.sampling import SamplingParams
from nla.models.target import Target
from nla.models.verbalizer import Verbalizer
from nla.training.stages import JointStage, ReconstructorStage, VerbalizerStage

TEXTS: list[str | None] = ["It rains.", None, "Tom walks.", "A fox jumps.", "dog", "The town.", None, "fox"]


# 26: the injection counter


def unread(prompt: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    return prompt.roll(1, dims=1)  # the marker's row is somewhere else


def swapped(prompt: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    return prompt.flip(0)  # each row carries another row's activation


def overflown(prompt: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    return prompt.masked_fill(torch.arange(len(prompt)).view(-1, 1, 1) == 1, torch.inf)


@pytest.mark.parametrize("fault", [unread, swapped, overflown])
@pytest.mark.parametrize("path", ["alone", "packed", "engine", "hf"])
def test_an_injection_that_fails_stops(nla: NLA, monkeypatch: pytest.MonkeyPatch, fault: Any, path: str) -> None:
    """26: rows injected equal rows in the batch, in teacher forcing, packed or not, and in both samplers; else stop."""
    activation, verbalizer = batch(4).activation, nla.verbalizer
    tokens, mask = verbalizer.respond(["It rains."] * 8)

    def run() -> None:
        if path in ("engine", "hf"):
            verbalizer.sample(activation, sampling_params(2, max_new_tokens=3, backend=path))
        else:
            rows = 4 if path == "alone" else 8
            verbalizer(activation, tokens[:rows], mask[:rows])

    run()
    usual = Verbalizer.prompt_embeddings
    monkeypatch.setattr(Verbalizer, "prompt_embeddings", lambda self, h: fault(usual(self, h), h))
    with pytest.raises(InjectionError, match=r"\d of \d rows carry their activation"):
        run()


def test_the_counter_holds_under_gradient_checkpointing_and_in_any_order(nla: NLA) -> None:
    """26: checkpointed blocks run twice on the same inputs, with the same outcome; rows may come in any order."""
    activation, verbalizer = batch(4).activation, nla.verbalizer
    tokens, mask = verbalizer.respond(["It rains.", "Tom walks to the town.", "dog", "A fox."])

    def log_probs(order: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        verbalizer.zero_grad()
        found = verbalizer(activation[order], tokens[order], mask[order])
        found.sum().backward()
        return found.detach(), [p.grad.clone() for p in verbalizer.parameters() if p.grad is not None]

    straight, turned = torch.arange(4), torch.tensor([2, 0, 3, 1])
    plain, gradient = log_probs(straight)
    verbalizer.model.gradient_checkpointing_enable({"use_reentrant": False})
    verbalizer.train()
    checkpointed, again = log_probs(straight)
    assert torch.equal(plain, checkpointed) and same(gradient, again, atol=1e-7)
    assert torch.allclose(log_probs(turned)[0], plain[turned], atol=1e-5)


# 30: a loss or gradient that is not finite


class Poisoned(ReconstructorStage):
    """Its loss (`where="loss"`) or gradient is not finite in the steps `bad`; the other one stays finite."""

    where, bad, seen = "gradient", frozenset[int](), 0

    def update(self, batch: ActivationBatch, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.seen in self.bad:
            if self.where == "loss":
                loss = loss * torch.nan
            else:
                gradient = self.nla.reconstructor.head.weight.grad
                assert gradient is not None
                gradient[0, 0] = torch.inf
        self.seen += 1
        return super().update(batch, loss)


def poisoned(nla: NLA, target: Target, where: str, bad: set[int], **more: Any) -> Poisoned:
    stage = Poisoned(nla, target, **options(4, **more), **HEAD, max_new_tokens=8)
    stage.where, stage.bad = where, frozenset(bad)
    return stage


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_one_bad_step_is_skipped_counted_and_its_rows_recorded(
    nla: NLA, target: Target, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30: the weights after four steps of which the second was bad are those of the other steps alone."""
    monkeypatch.chdir(tmp_path)
    batches = [batch(seed=seed) for seed in range(5)]
    clean = copy.deepcopy(nla)
    slow = {"warmup_steps": 3, "final_fraction": 0.1}  # the schedule, too, must not notice the bad step
    trainer = fit(poisoned(nla, target, where, {1}, **slow), 4, batches)
    assert trainer.global_step == 4 and float(trainer.callback_metrics["reconstructor/skipped_steps"]) == 1
    fit(poisoned(clean, target, where, set(), **slow), 4, [batches[0], *batches[2:]])
    assert same(weights(nla), weights(clean))
    record = json.loads((tmp_path / "skipped-rank0.jsonl").read_text())
    assert record["step"] == 1 and record["rows"] == [[f"d{i}", i] for i in range(4)]
    assert "nan" in record["figures"]["loss"] or "inf" in record["figures"]["gradient_norm_reconstructor"]


def test_several_bad_steps_in_a_row_stop_with_finite_weights(
    nla: NLA, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30: two in a row pass when three stop; three stop, name the record, and leave the last good weights."""
    monkeypatch.chdir(tmp_path)
    fit(poisoned(nla, target, "gradient", {0, 1, 3}, skipped_in_a_row=3), 4)
    before = weights(nla)
    with pytest.raises(TrainingError, match=r"3 steps in a row .*skipped-rank0.jsonl"):
        fit(poisoned(nla, target, "gradient", {0, 1, 2}, skipped_in_a_row=3), 4)
    assert same(before, weights(nla)) and all(bool(p.isfinite().all()) for p in nla.parameters())


def test_the_count_of_skipped_steps_is_resumed(nla: NLA, target: Target) -> None:
    """30: a run that is killed and continued does not start counting anew."""
    stage = poisoned(nla, target, "loss", set())
    stage.skipped_steps.total, stage.skipped_steps.in_a_row = 7, {"steps": 2}
    checkpoint: dict[str, Any] = {}
    stage.on_save_checkpoint(checkpoint)
    other = poisoned(nla, target, "loss", set())
    other.on_load_checkpoint(checkpoint)
    assert (other.skipped_steps.total, other.skipped_steps.in_a_row) == (7, {"steps": 2})


# 35: out of memory


class Short(JointStage):
    """A fixed rollout, and no memory for the pass number `fails` of the first attempt; keeps the gradients it made."""

    fails, passes, fixed = 0, 0, None

    def collect(self, batch: ActivationBatch) -> Rollout:
        assert self.fixed is not None
        return self.fixed

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss, *args, **kwargs)  # its gradient is there when the memory runs out
        self.passes += 1
        if self.passes == self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    def update(self, batch: ActivationBatch, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        self.gradients = [p.grad.clone() for p in self.nla.parameters() if p.grad is not None]
        return super().update(batch, loss)


def gradients_of(nla: NLA, target: Target, size: int, fails: int) -> tuple[list[torch.Tensor], Short]:
    pair = copy.deepcopy(nla)
    made = joint(pair, target, micro_batch_size=size)
    made.__class__ = Short
    stage: Any = made
    stage.fixed = Rollout(batch(4).activation, 4, completions_of(pair, TEXTS * 2))
    stage.fails = fails
    fit(stage, 1)
    return stage.gradients, stage


@pytest.mark.parametrize(("size", "fails", "left"), [(16, 1, 8), (8, 2, 4)])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradient(
    nla: NLA, target: Target, size: int, fails: int, left: int
) -> None:
    """35: memory runs out at the first or a later micro-batch, when gradients have already been added up."""
    expected, _ = gradients_of(nla, target, 16, fails=0)
    with pytest.warns(UserWarning, match=rf"done again with {left}.*hardware.micro_batch_size={left}"):
        found, stage = gradients_of(nla, target, size, fails)
    assert stage.micro_batch_size == left and stage.passes == fails + 16 // left
    assert len(found) == len(expected) > 10 and same(found, expected, atol=1e-6)


def test_out_of_memory_at_one_group_says_what_to_do(nla: NLA, target: Target) -> None:
    """35: the third micro-batch fails and none is smaller; nothing was stepped."""
    with pytest.raises(TrainingError, match=r"micro-batches of 4 samples .*none is smaller.*sampling.group_size"):
        gradients_of(nla, target, 4, fails=3)


@pytest.mark.parametrize("kind", [VerbalizerStage, ReconstructorStage])
def test_micro_batches_of_the_warm_starts_do_not_change_a_step(nla: NLA, target: Target, kind: Any) -> None:
    """35: neither does running out of memory at the third of them; plain gradient steps of size 1 show the gradient."""
    plain = {"optimizer": functools.partial(torch.optim.SGD, lr=1.0), "clip_norm": 1e9}
    one = batch(4)
    assert one.explanation is not None
    rows = ActivationBatch(
        torch.cat([one.activation, batch(4, seed=2).activation]),
        one.document * 2, one.position.repeat(2), one.text * 2, [*one.explanation, *reversed(one.explanation)],
    )  # fmt: skip
    found = []
    for size, fails in ((8, 0), (1, 0), (2, 3)):
        pair = copy.deepcopy(nla)

        class Failing(kind):
            passes, last = 0, fails

            def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
                super().manual_backward(loss, *args, **kwargs)
                self.passes += 1
                if self.passes == self.last:
                    raise torch.OutOfMemoryError("out of memory")

        head = HEAD if kind is ReconstructorStage else {}
        stage = Failing(pair, target, **options(1, micro_batch_size=size, **plain), **head, max_new_tokens=8)
        trainer = fit(stage, 1, [rows])
        assert stage.micro_batch_size == (1 if fails else size)
        name = "loss" if kind is VerbalizerStage else "error"
        found.append((weights(pair), float(trainer.callback_metrics[f"{stage.name}/{name}"])))
    assert not same(found[0][0], weights(nla), atol=1e-3)
    for other in found[1:]:
        assert same(found[0][0], other[0], atol=1e-6)
        assert found[0][1] == pytest.approx(other[1], rel=1e-5)


class Tight(JointStage):
    """Memory for the sampling, or for the reading, of `most` rows at a time only."""

    most, starts, read = 99, list[int](), 0

    def run_short(self) -> None:
        usual, reconstruct = self.nla.verbalizer.sample, self.nla.reconstructor.reconstruct

        def sample(activation: torch.Tensor, params: SamplingParams, seed: int, first_row: int) -> Any:
            self.starts = [*self.starts, first_row]
            if len(activation) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return usual(activation, params, seed, first_row)

        def read(texts: Any, *args: Any) -> Any:
            self.read += len(texts) <= self.most
            if len(texts) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return reconstruct(texts, *args)

        self.nla.verbalizer.sample, self.nla.reconstructor.reconstruct = sample, read  # pyright: ignore[reportAttributeAccessIssue]


def tight(nla: NLA, target: Target, most: int) -> Tight:
    made: Any = joint(copy.deepcopy(nla), target, sampling=SamplingParams.policy(12, group_size=4))
    made.__class__, made.most = Tight, most
    return made


def test_out_of_memory_while_sampling_goes_on_in_halves_with_the_same_tokens(nla: NLA, target: Target) -> None:
    """35: rows have their own seeds; what is sampled already is kept, and the size that fits is remembered."""
    found, many = [], batch(4)
    for most in (99, 1):
        stage = tight(nla, target, most)
        fit(stage, 1)
        stage.run_short()
        stage.starts = []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found.append([stage.collect(many).completions for _ in range(2)])
        if most == 1:
            halved = [str(warning.message) for warning in said if "out of memory" in str(warning.message)]
            assert len(halved) == 2 and "sampling 4 rows at a time" in halved[0] and "2 at a time" in halved[0]
            assert stage.starts == [0, 0, 0, 4, 8, 12, 0, 4, 8, 12]
    for whole, parts in zip(*found, strict=True):
        assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.mask, parts.mask)
        assert whole.explanation == parts.explanation and len(set(map(len, whole.tokens.tolist()))) == 1
        assert whole.log_probs is not None and parts.log_probs is not None
        assert torch.allclose(whole.log_probs, parts.log_probs, atol=1e-5)
    assert not torch.equal(found[0][0].tokens[:4], found[0][0].tokens[4:8])


def test_out_of_memory_while_scoring_goes_on_in_halves(nla: NLA, target: Target) -> None:
    """35: a validation's explanations, sampled and read in parts, give the figures of the whole."""
    figures = []
    for most in (99, 2):
        stage = tight(nla, target, most)
        stage.run_short()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = fit(stage, 1)
        figures.append({k: float(v) for k, v in trainer.callback_metrics.items() if "validation" in k})
        assert stage.read == (2 if most == 2 else 1)
    assert figures[1] == pytest.approx(figures[0], abs=1e-5) and len(figures[0]) > 4


def test_out_of_memory_with_one_row_says_what_to_do(nla: NLA, target: Target) -> None:
    """35: nothing smaller can be sampled."""
    stage = tight(nla, target, 0)
    stage.run_short()
    with pytest.raises(TrainingError, match=r"out of memory while sampling 1 rows .*sampling.group_size"):
        fit(stage, 1)


def test_a_skipped_update_of_the_reconstructor_alone_is_counted_and_stops_after_several(
    nla: NLA, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30: with several updates per step, the later ones too."""
    monkeypatch.chdir(tmp_path)

    class Poisoned(JointStage):
        def collect(self, batch: ActivationBatch) -> Rollout:
            return Rollout(batch.activation, 4, completions_of(self.nla, TEXTS * 2))

        def _update_reconstructor(self, *args: Any) -> None:
            usual = self.manual_backward

            def backward(loss: torch.Tensor, *more: Any, **options: Any) -> None:
                usual(loss * torch.nan, *more, **options)

            self.manual_backward = backward  # pyright: ignore[reportAttributeAccessIssue]
            super()._update_reconstructor(*args)
            self.manual_backward = usual  # pyright: ignore[reportAttributeAccessIssue]

    def made() -> Any:
        stage: Any = joint(copy.deepcopy(nla), target, steps=3, reconstructor_updates=2, skipped_in_a_row=3)
        stage.__class__ = Poisoned
        return stage

    stage = made()
    trainer = fit(stage, 2)
    assert float(trainer.callback_metrics["joint/skipped_steps"]) == 2 and trainer.global_step == 2
    assert all(bool(weight.isfinite().all()) for weight in stage.nla.parameters())
    with pytest.raises(TrainingError, match="3 reconstructor updates in a row"):
        fit(made(), 3)

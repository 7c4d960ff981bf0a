"""Cases 26, 27, 28, 32, 33 and 35 of the fault list: the preflight finds each before a long run does."""

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import sampling_params
from support.programs import Program
from support.stages import batch, fit, joint, options, reconstructor

from nla.commands.cli import main
from nla.config.check import check_train
from nla.config.compose import compose
from nla.core.objectives import normalize
from nla.core.records import ActivationBatch
from nla.errors import TrainingError
from nla.models.pair import NLA
from nla.models.target import Target
from nla.models.verbalizer import Verbalizer
from nla.training.preflight import checks, require
from nla.training.preflight.trial import kl_gradient
from nla.training.stages import ReconstructorStage

SMOKE = ["experiment=world_smoke", "hardware=cpu"]


def many(rows: int = 32) -> ActivationBatch:
    """Activations and texts of eight kinds: a reconstructor can learn which belong together."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randn(8, 32, generator=generator)
    activation = kinds.repeat(rows // 8, 1) + 0.1 * torch.randn(rows, 32, generator=generator)
    words = ["rain", "fox", "town", "lazy dog", "harbour", "Tom walks", "quick", "brown"]
    texts = [f"It says {words[row % 8]}." for row in range(rows)]
    return ActivationBatch(activation, [f"d{row}" for row in range(rows)], torch.arange(rows), texts, texts)


def test_an_untrained_random_or_damaged_reconstructor_is_refused(nla: NLA, target: Target) -> None:
    """28: a trained head passes; the identity, a random head and one with NaN do not."""
    rows = many()
    assert checks.reconstruction(nla, rows).message.startswith("its head is the identity")
    fit(reconstructor(nla, target, **options(40, micro_batch_size=32)), 40, [rows])
    found = checks.reconstruction(nla, rows)
    assert found.status == "ok", found.message
    for fill, message in ((torch.nn.init.normal_, "no more from its texts than chance"), (None, "not finite")):
        with torch.no_grad():
            fill(nla.reconstructor.head.weight) if fill else nla.reconstructor.head.weight.fill_(torch.nan)
        found = checks.reconstruction(nla, many())
        assert found.status == "failed" and message in found.message


def test_vectors_that_make_no_difference_fail(nla: NLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """26, 27: different vectors with the same prompt give different log-probs, or the check fails."""
    assert checks.injection(nla.verbalizer, batch(4)).status == "ok"
    usual = Verbalizer.prompt_embeddings
    monkeypatch.setattr(Verbalizer, "prompt_embeddings", lambda self, h: usual(self, torch.ones_like(h)))
    assert "rows carry their activation" in checks.injection(nla.verbalizer, batch(4)).message
    monkeypatch.setattr(Verbalizer, "require_injected", lambda *_: None)
    found = checks.injection(nla.verbalizer, batch(4))
    assert found.status == "failed" and "does not read its activation" in found.message


@pytest.mark.parametrize(("factor", "status"), [(1.0, "ok"), (500.0, "warning"), (1 / 500, "warning")])
def test_a_scale_500_times_off_warns_with_both_norms(nla: NLA, factor: float, status: str) -> None:
    """27: activations of norm sqrt(32) times the factor, injected at sqrt(32)."""
    rows = batch(4)
    scaled = ActivationBatch(
        normalize(rows.activation, factor * 32**0.5), rows.document, rows.position, rows.text, rows.explanation
    )
    found = checks.injection_scale(nla.verbalizer, scaled)
    assert found.status == status
    assert f"{factor * 32**0.5:.3g}" in found.message and f"{32**0.5:.3g}" in found.message


def test_another_policy_in_the_sampler_fails(nla: NLA) -> None:
    """32: the gap between sampled and teacher-forced log-probs."""
    completions = nla.verbalizer.sample(batch(4).activation, sampling_params(max_new_tokens=8))
    assert checks.sampling_gap(nla.verbalizer, batch(4), completions, 0.1).status == "ok"
    with torch.no_grad():
        for weight in nla.verbalizer.parameters():
            weight.mul_(1.5)
    found = checks.sampling_gap(nla.verbalizer, batch(4), completions, 0.1)
    assert found.status == "failed" and "at most 0.1 is allowed" in found.message


def test_the_kl_is_zero_and_then_pulls(nla: NLA, target: Target) -> None:
    """33: its gradient is 0 at the reference and not once the policy has moved; a KL that is not 0 at first fails."""
    stage = joint(nla, target)
    assert 0 < kl_gradient(stage, batch(2).activation) < 1e6
    assert checks.kl(0.0, 0.5).status == "ok" and checks.kl(None, None).status == "ok"
    assert {checks.kl(*figures).status for figures in ((1e-9, 0.5), (0.0, 0.0), (0.0, torch.inf))} == {"failed"}


def test_a_folder_that_is_too_small_or_cannot_be_written_fails(tmp_path: Path, nla: NLA) -> None:
    """35, 8: before the run rather than at its first checkpoint; nothing is left behind."""
    needed = checks.disk_needed(nla, stages=3, kept=2)
    weights = sum(p.numel() for p in nla.parameters())
    assert 4 * weights * 4 < needed < 4 * weights * 20
    assert [check.status for check in checks.run_folder(tmp_path / "runs/new", needed)] == ["ok", "ok"]
    assert checks.run_folder(tmp_path / "runs/new", 10**18)[1].status == "failed"
    assert list(tmp_path.iterdir()) == []
    assert checks.run_folder(Path("/proc/none"), 0)[0].status == "failed"


def test_the_preflight_of_the_smoke_run_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checks of all stages; the run folder is not even made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["preflight", *SMOKE]) == 0
    shown = capsys.readouterr().out
    for name in ("injection", "sampling gap", "step of verbalizer", "step of reconstructor", "step of joint", "KL"):
        assert name in shown
    assert "0 at step 0" in shown and ", 0 failed; " in shown
    assert list(tmp_path.iterdir()) == []


def test_the_preflight_refuses_a_random_head_and_sizes_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """28, 35: a saved pair whose head is random; memory for 64 rows at most."""
    monkeypatch.chdir(tmp_path)
    usual = ReconstructorStage.manual_backward
    passes = []

    def short(self: ReconstructorStage, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        usual(self, loss, *args, **kwargs)
        passes.append(self.micro_batch_size)
        if len(passes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ReconstructorStage, "manual_backward", short)
    templates = compose("train", SMOKE).model.templates
    from nla.models.prompts import Templates

    pair = NLA.from_target("world", 2, Templates(**templates), injection_scale=150.0)
    torch.nn.init.normal_(pair.reconstructor.head.weight, generator=torch.Generator().manual_seed(0))
    pair.save_pretrained(tmp_path / "pair", stage="reconstructor")
    given = [*SMOKE, f"nla={tmp_path / 'pair'}", "stages=[reconstructor]"]
    assert main(["preflight", *given]) == 2
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())  # however wide the console was made
    assert "no more from its texts than chance" in shown
    assert "128 did not fit: hardware.micro_batch_size=64 does" in shown
    settings = check_train(compose("train", given))
    with pytest.raises(TrainingError, match=r"preflight: reconstructor failed \(1 in all\)"):
        require(settings)
    assert main(["preflight", *SMOKE, "layer.idx=1"]) == 2
    assert "did you mean 'layer.index'" in capsys.readouterr().err


def test_a_signal_ends_it_at_once_and_leaves_what_was_found() -> None:
    """Each check is a line as soon as it has ended; SIGTERM does not wait for the rest."""
    program = Program("nla/commands/cli.py", "preflight", "experiment=world", "hardware=cpu")
    until = time.monotonic() + 60
    while "ok      parts (" not in program.output() and program.returncode is None and time.monotonic() < until:
        time.sleep(0.05)
    program.send_signal(signal.SIGTERM)
    output, errors = program.communicate(timeout=20)
    assert program.returncode == 128 + signal.SIGTERM, output + errors
    assert "preflight:" not in output and re.search(r"^ok      parts \([\d.]+ s\): world, layer ", output, re.MULTILINE)

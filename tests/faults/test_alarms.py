"""Cases 31, 32 and 34 of the fault list: what tells that a policy collapses, or is not the one that is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import ROOT
from support.stages import fit, joint

from nla.core.records import Completions
from nla.errors import ConfigError, TrainingError
from nla.models.pair import NLA
from nla.models.target import Target
from nla.training.callbacks import Alarms, Checkpointing
from nla.training.callbacks.alarms import ALARMS
from nla.training.checkpoints import CheckpointFolder
from nla.training.stages.texts import text_metrics

LIMITS: dict[str, Any] = yaml.safe_load((ROOT / "conf/callbacks/default.yaml").read_text())["alarms"]
LIMITS.pop("_target_")
HEALTHY = {"surprisal": 0.5, "well_formed": 0.9, "at_cap": 0.1, "equal_groups": 0.1, "kl": 0.3, "repetition": 0.02,
           "sampling_gap": 1e-6}  # fmt: skip
ILL = {"surprisal": 1e-3, "well_formed": 0.2, "at_cap": 0.9, "equal_groups": 0.95, "kl": 9.0, "repetition": 0.6,
       "sampling_gap": 0.5}  # fmt: skip


def steps(alarms: Alarms, *figures: dict[str, float]) -> list[str]:
    """What rings in steps with these figures."""
    return [said for step, values in enumerate(figures, start=1) for said in alarms.check(values, "joint", step)]


@pytest.mark.parametrize("metric", [alarm.metric for alarm in ALARMS])
def test_each_alarm_names_value_limit_step_meaning_and_remedy(metric: str) -> None:
    """31, 32: it rings once after `patience` steps in a row, and again only after its figure has come back."""
    alarm = next(alarm for alarm in ALARMS if alarm.metric == metric)
    needed = 1 if alarm.at_once else 3
    ill = HEALTHY | {metric: ILL[metric]}
    alarms = Alarms(**{**LIMITS, "patience": 3, "stop_on": []})
    assert steps(alarms, HEALTHY, *[ill] * (needed - 1), HEALTHY) == []
    said = steps(alarms, *[ill] * 7)
    assert len(said) == 1
    value = f"joint/{metric} is {ILL[metric]:.3g} at step {needed}"
    for part in (value, f"callbacks.alarms.{metric}={LIMITS[metric]:g}", alarm.meaning, alarm.remedy):
        assert part in said[0]
    assert len(steps(alarms, HEALTHY, *[ill] * 7)) == 1
    off = Alarms(**{**LIMITS, "patience": 3, "stop_on": [], metric: None})
    assert steps(off, *[ill] * 7) == []


@pytest.mark.parametrize("metric", [alarm.metric for alarm in ALARMS])
def test_an_alarm_can_stop_the_run_instead(metric: str) -> None:
    """31, 32: the config's choice."""
    alarms = Alarms(**{**LIMITS, "patience": 1, "stop_on": [metric]})
    with pytest.raises(TrainingError, match=f"stage joint stopped: joint/{metric} is "):
        steps(alarms, HEALTHY | {metric: ILL[metric]})


def test_unknown_alarms_are_refused() -> None:
    """31: a typo must not leave a run without its stop."""
    with pytest.raises(ConfigError, match=r"callbacks.alarms.stop_on: no alarm 'entropy'; there are surprisal,"):
        Alarms(**{**LIMITS, "stop_on": ["entropy"]})


def test_a_streak_goes_on_after_a_resume() -> None:
    """31: two steps before the kill and one after it are three."""
    ill = HEALTHY | {"kl": 9.0}
    first, second = (Alarms(**{**LIMITS, "patience": 3, "stop_on": []}) for _ in range(2))
    assert steps(first, ill, ill) == []
    second.load_state_dict(first.state_dict())
    assert len(steps(second, ill)) == 1


def test_the_joint_stage_logs_what_the_alarms_read(nla: NLA, target: Target) -> None:
    """31: an untrained policy writes to the cap without tags, so every group earns the same: three alarms ring."""
    alarms = Alarms(**{**LIMITS, "patience": 2, "stop_on": []})
    with pytest.warns(UserWarning, match="joint/well_formed is") as said:
        trainer = fit(joint(nla, target, steps=2), 2, callbacks=[alarms])
    assert {alarm.metric for alarm in ALARMS} <= {name.removeprefix("joint/") for name in trainer.callback_metrics}
    rung = {m for m in HEALTHY for warning in said if f"joint/{m} is" in str(warning.message)}
    assert {"well_formed", "at_cap", "equal_groups"} <= rung and not rung & {"sampling_gap", "surprisal", "kl"}


def test_a_sampler_that_samples_another_policy_stops_the_run(nla: NLA, target: Target) -> None:
    """32: by default; here the sampler reads other weights than those in training."""
    stage = joint(nla, target, steps=3)
    usual = stage.nla.verbalizer.sample

    def stale(*arguments: Any, **options: Any) -> Completions:
        weights = list(stage.nla.verbalizer.parameters())
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1.5)
        try:
            return usual(*arguments, **options)
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

    stage.nla.verbalizer.sample = stale  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainingError, match=r"joint/sampling_gap is .* at step 1, above callbacks.alarms.sampling_gap"):
        fit(stage, 3, callbacks=[Alarms(**LIMITS)])


@pytest.mark.parametrize("metric", ["surprisal", "well_formed", "equal_groups", "kl", "sampling_gap"])
def test_a_collapse_ends_the_run_within_ten_steps_by_default(metric: str) -> None:
    alarms = Alarms(**LIMITS)
    with pytest.raises(TrainingError, match=f"stage joint stopped: joint/{metric} is"):
        steps(alarms, HEALTHY, *[HEALTHY | {metric: ILL[metric]}] * 9)


def test_a_stopped_run_names_its_rate_and_where_to_continue(nla: NLA, target: Target, tmp_path: Path) -> None:
    """An untrained policy writes no tags: it ends at the third step; no checkpoint is older."""
    limits = LIMITS | {"stop_on": ["well_formed"], "patience": 3, "equal_groups": None, "at_cap": None}
    saving = Checkpointing(folder="checkpoints", every=1, keep=5)
    stage = joint(nla, target, steps=20)
    with pytest.raises(TrainingError) as failure:
        fit(stage, 20, callbacks=[Alarms(**limits), saving], default_root_dir=tmp_path, enable_checkpointing=True)
    message = str(failure.value)
    assert "joint/well_formed is 0 at step 3, below callbacks.alarms.well_formed=0.5 for 3 steps" in message
    rate = stage.optimizer_factory([{"params": [torch.zeros(1)]}]).param_groups[0]["lr"]
    assert f"Learning rates now: {rate:.2g}" in message and "no checkpoint is older" in message


def test_the_way_back_is_the_newest_checkpoint_from_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=5)
    for step in (10, 20, 30):
        (tmp_path / f"{step:06d}").mkdir()
    assert [path.name for path in folder.up_to(25)] == ["000010", "000020"] and folder.up_to(5) == []


def test_repeated_tags_show_as_repetition() -> None:
    """34: a text in a loop of two tokens is all repetition but for its first two runs; padding counts for nothing."""
    tokens, mask = torch.tensor([[5, 6] * 10]), torch.ones(1, 20, dtype=torch.bool)
    found = text_metrics(Completions(tokens, mask, ["x"]), cap=40)
    assert float(found["repetition"]) == pytest.approx(15 / 17)
    half = text_metrics(Completions(tokens, mask & (torch.arange(20) < 6), ["x"]), cap=40)
    assert float(half["repetition"]) == pytest.approx(1 / 3)


def test_text_metrics_of_a_known_batch() -> None:
    """31: lengths through the stop token, at the cap, well-formed."""
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 5]).unsqueeze(1)
    found = text_metrics(Completions(torch.arange(20).view(4, 5), mask, [None, "a", "b", None]), cap=5)
    assert {name: float(value) for name, value in found.items()} == {
        "explanation_tokens": 3.5, "well_formed": 0.5, "at_cap": 0.5, "repetition": 0.0
    }  # fmt: skip


def test_the_default_limits_leave_a_healthy_batch_alone() -> None:
    """31: every alarm has a limit in the config, on the healthy side of which the figures of the world's run lie."""
    assert set(LIMITS) == {"patience", "stop_on", *(alarm.metric for alarm in ALARMS)}
    assert steps(Alarms(**{**LIMITS, "patience": 1}), HEALTHY, HEALTHY) == []

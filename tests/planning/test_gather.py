"""`hardware.gather=auto`: decided by the planner's formulas before a run, printed, and not for an explicit value."""

from pathlib import Path
from typing import Any

import pytest
from support.shapes import GEMMA_27B, QWEN

from nla.commands.plan import plan_of
from nla.config.check import check_train
from nla.config.compose import compose
from nla.config.schema import TrainSettings
from nla.models.pretrained.metadata import read_yaml
from nla.planning import advice, gather
from nla.planning.gather import with_gather
from nla.training import program as app

BIG = ["model=local", "model.path=null", "model.id=m", "sampling.max_new_tokens=150", "stage.joint.data.batch_size=128"]


def resolved(*overrides: str) -> str:
    settings = with_gather(check_train(compose("train", overrides)))
    assert {stage.arguments["gather"] for stage in settings.stage.values()} == {settings.hardware.gather}
    return settings.hardware.gather


@pytest.mark.parametrize("hardware", ["h100_x8", "h100_x16", "slurm_h100"])
def test_it_is_the_default_where_weights_are_sharded(hardware: str) -> None:
    assert compose("train", [f"hardware={hardware}"]).hardware.gather == "auto"


def test_weights_that_fit_are_gathered_once_others_block_by_block(capsys: pytest.CaptureFixture[str]) -> None:
    """As `nla plan` says it of the same overrides."""
    seven = [*BIG, f"model.shape={QWEN}", "layer.index=20", "hardware=h100_x8"]
    assert resolved(*seven) == plan_of(seven)["gather"] == "once"
    said = capsys.readouterr().out
    assert said.startswith("hardware.gather=auto is once: the gathered weights fit") and said.count("\n") == 1
    large = [*BIG, f"model.shape={GEMMA_27B}", "layer.index=41", "hardware=h100_x16", "sampling.group_size=8"]
    assert resolved(*large) == advice.runnable(plan_of(large)["gather"]) == "blocks"
    assert "hardware.gather=auto is blocks: gathered weights do not fit" in capsys.readouterr().out


def test_the_memory_of_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    seven = [*BIG, f"model.shape={QWEN}", "layer.index=20", "hardware=h100_x8"]
    usual = gather.assumed("h100")
    monkeypatch.setattr(gather, "assumed", lambda _device: usual.model_copy(update={"memory_gib": 40.0}))
    assert resolved(*seven) == "blocks"


def test_an_explicit_value_stays_and_other_strategies_need_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    large = [*BIG, f"model.shape={GEMMA_27B}", "layer.index=41", "hardware=h100_x16"]
    assert resolved(*large, "hardware.gather=once") == "once"
    assert resolved(*large, "adapter=lora") == "once"  # DDP: nothing is gathered
    assert capsys.readouterr().out == ""


def test_a_saved_pair_is_planned_by_its_own_model(saved_nla: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    usual = gather.tasks_of
    monkeypatch.setattr(gather, "tasks_of", lambda *given: seen.append(usual(*given)) or seen[-1])
    assert resolved("hardware=h100_x8", f"nla={saved_nla}") == "once"
    task = seen[0][0][0]
    assert (task.shape.d_model, task.layer) == (32, 1)


def test_a_run_resolves_and_records_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []

    class Enough(Exception):
        pass

    def run_stage(settings: TrainSettings, *_: Any) -> None:
        seen.append(settings.stage["verbalizer"].arguments["gather"])
        raise Enough

    monkeypatch.setattr(app, "run_stage", run_stage)
    monkeypatch.setattr(app, "check_ranks", lambda trainer: None)
    given = ["hardware=cpu_x2", "hardware.trainer.strategy=fsdp2", "hardware.gather=auto"]
    settings = check_train(compose("train", given))
    with pytest.raises(Enough):
        app.train(settings)
    assert seen == ["once"]
    assert read_yaml(tmp_path / "runs/world/config.yaml")["hardware"]["gather"] == "once"

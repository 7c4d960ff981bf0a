"""Faults A, checkpoint and resume: what is stopped at any moment ends as if it had not been."""

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support.runs import overrides, stop, trace, train

from nla.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from nla.training.callbacks.checkpointing import StateFile

pytestmark = pytest.mark.usefixtures("here")


def table(name: str, stage: str) -> list[dict[str, str]]:
    """metrics.csv without the seconds."""
    with Path("runs", name, "stages", stage, "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)]


def pair(name: str) -> dict[str, bytes]:
    """The weights that a run left."""
    root = Path("runs", name, "nla")
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


@pytest.mark.parametrize("stage", ["verbalizer", "reconstructor", "joint"])
def test_8_steps_and_12_are_20(stage: str, tiny_folder: str, warm: str) -> None:
    """Case 1: losses, weights, optimizer, schedule, random states and rows, bitwise, with dropout on."""
    start = {"nla": warm} if stage == "joint" else {}
    train(*overrides(tiny_folder, "straight", stage, **start))
    with pytest.raises(Interrupted):
        train(*overrides(tiny_folder, "parts", stage, **start), stop(8))
    assert [line["step"] for line in trace("parts")] == list(range(1, 9))
    train(*overrides(tiny_folder, "parts", stage, **start))
    assert trace("parts") == trace("straight")
    assert table("parts", stage) == table("straight", stage) and pair("parts") == pair("straight")
    states = {line["state"] for line in trace("straight")}
    assert len(states) == 20
    if stage == "joint":
        assert max(line["metrics"]["joint/well_formed"] for line in trace("straight")) > 0.5
        assert len({line["metrics"]["joint/kl"] for line in trace("straight")}) > 10


def test_the_last_good_checkpoint_goes_on_after_a_guard_has_stopped_the_run(tiny_folder: str) -> None:
    """Case 30: nothing of the steps that were left out is in it; without their cause the run ends as if undisturbed."""
    settings = overrides(tiny_folder, "guarded", "reconstructor", 12, callbacks__checkpoint__every=5)
    with pytest.raises(TrainingError, match="5 steps in a row"):
        train(*settings, "+callbacks.poison={_target_: support.runs.Poison, step: 8}")
    saved = sorted(path.name for path in Path("runs/guarded/stages/reconstructor/checkpoints").glob("[0-9]*"))
    assert saved[-1] == "000005"
    train(*settings)
    train(*overrides(tiny_folder, "straight", "reconstructor", 12, callbacks__checkpoint__every=5))
    assert trace("guarded")[-7:] == trace("straight")[-7:] and pair("guarded") == pair("straight")
    assert table("guarded", "reconstructor") == table("straight", "reconstructor")


def test_with_adapters_a_checkpoint_holds_no_base_weights_and_resumes(tiny_folder: str, warm: str) -> None:
    """Case 1 with LoRA: the frozen weights come from the base model again, the KL reference from the start pair."""
    more = {"nla": warm, "adapter": "lora", "adapter__rank": 2, "steps": 6}
    train(*overrides(tiny_folder, "straight", "joint", **more))
    with pytest.raises(Interrupted):
        train(*overrides(tiny_folder, "parts", "joint", **more), stop(3))
    state = torch.load("runs/parts/stages/joint/checkpoints/000003/state", weights_only=True)
    assert all("lora_" in name or "head" in name for name in state["state_dict"])
    train(*overrides(tiny_folder, "parts", "joint", **more))
    assert trace("parts") == trace("straight") and pair("parts") == pair("straight")


def test_three_stops_in_an_epoch_and_one_at_its_end_lose_and_repeat_no_row(tiny_folder: str) -> None:
    """Case 2: 10 documents, 2 a step, so the epoch ends with step 5; workers fetch ahead meanwhile."""
    more = {"steps": 12, "size": 10, "data__num_workers": 1}
    for step in (1, 2, 4, 5):
        with pytest.raises(Interrupted):
            train(*overrides(tiny_folder, "parts", "reconstructor", **more), stop(step))
    train(*overrides(tiny_folder, "parts", "reconstructor", **more))
    lines = trace("parts")
    assert [line["step"] for line in lines] == list(range(1, 13))
    documents = [row.split(":")[0] for line in lines for row in line["rows"][::4]]
    for epoch in (documents[:10], documents[10:20]):
        assert sorted(epoch) == [f"warm_start-{number}" for number in range(10)]


def test_a_finished_run_goes_on_with_new_batches(tiny_folder: str) -> None:
    """Case 3: more steps go on after the last, with the rows that come next; the new pair takes the old one's place."""
    constant = {"stage__reconstructor__final_fraction": 1.0}
    train(*overrides(tiny_folder, "straight", "reconstructor", 9, **constant))
    train(*overrides(tiny_folder, "parts", "reconstructor", 5, **constant))
    first = pair("parts")
    train(*overrides(tiny_folder, "parts", "reconstructor", 9, **constant))
    assert trace("parts") == trace("straight") and pair("parts") == pair("straight") != first
    with pytest.raises(ConfigError, match=r"another stage.reconstructor.steps \(9, now 5\)"):
        train(*overrides(tiny_folder, "parts", "reconstructor", 5, **constant))


def test_a_stage_that_a_later_one_started_from_is_not_made_longer(tiny_folder: str) -> None:
    """Case 3: the later stage's start would change under it."""
    more = {"stages": "[verbalizer,reconstructor]", "stage__reconstructor__steps": 1}
    more |= {"stage__reconstructor__data__batch_size": 8, "stage__reconstructor__trainer__val_check_interval": 1}
    train(*overrides(tiny_folder, "two", "verbalizer", 2, **more))
    with pytest.raises(ConfigError, match="stage reconstructor has started from the pair that verbalizer left after 2"):
        train(*overrides(tiny_folder, "two", "verbalizer", 3, **more))


@pytest.mark.parametrize(
    ("moment", "number", "status"),
    [("step", signal.SIGTERM, 143), ("validation", signal.SIGTERM, 143), ("rollout", signal.SIGINT, 130)],
)
def test_a_signal_saves_at_the_next_step_boundary(
    moment: str, number: signal.Signals, status: int, tiny_folder: str, warm: str
) -> None:
    """Case 4: mid-step, mid-validation, mid-rollout, with loader workers."""
    more = {"nla": warm, "steps": 5, "data__num_workers": 1, "stage__joint__trainer__val_check_interval": 3}
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 3 of 5") as caught:
        train(*overrides(tiny_folder, "parts", "joint", **more), stop(3, moment, number))
    assert caught.value.status == status and signal.getsignal(number) == before
    assert [path.name for path in Path("runs/parts/stages/joint/checkpoints").iterdir()] == ["000003"]
    assert not Path("runs/parts/stages/joint/nla").exists()
    train(*overrides(tiny_folder, "parts", "joint", **more))
    steps = [(row["step"], bool(row["joint/validation/fve"])) for row in table("parts", "joint")]
    assert steps == [("1", False), ("2", False), ("3", False), ("3", True), ("4", False), ("5", False)]


def test_what_a_stage_starts_from_must_be_the_same_pair(tiny_folder: str, warm: str, here: Path) -> None:
    """Case 9: the start pair is the KL reference, so a resumed joint stage refuses another one."""
    shutil.copytree(warm, here / "start")
    arguments = overrides(tiny_folder, "parts", "joint", 4, nla="start")
    with pytest.raises(Interrupted):
        train(*arguments, stop(2))
    weights = here / "start/verbalizer/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(CheckpointError, match="start pair") as caught:
        train(*arguments)
    assert "checkpoint" in caught.value.details and "this run" in caught.value.details


def test_every_saved_state_loads_as_plain_weights(tiny_folder: str) -> None:
    """Case 10: torch.load(weights_only=True) takes it, and all that resumes is in it."""
    train(*overrides(tiny_folder, "short", "reconstructor", 2))
    [path] = Path("runs/short/stages/reconstructor/checkpoints").iterdir()
    state = torch.load(path / "state", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "rng", "NLADataModule", "skips"} <= set(state)
    assert state["NLADataModule"]["consumed_documents"] == 4
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 2 and manifest["facts"]["layer"] == 1 and manifest["facts"]["width"] == 32


def test_a_state_of_an_earlier_version_keeps_its_place(tmp_path: Path) -> None:
    """Lightning looks a loader's state up by its class, and without a word leaves out what it does not find."""
    place = {"consumed_documents": 12, "corpus": 3}
    torch.save({"ShardDataModule": place, "loops": {}}, tmp_path / "state")
    assert StateFile().load_checkpoint(tmp_path / "state") == {"NLADataModule": place, "loops": {}}

"""The two ways of docs/architecture.md, walked: one activation to the update, one config key to its constructor.

The page's tables say which functions are entered, in which order. A profiler watches real calls, so a step that is
renamed, moved, left out or reordered fails here, and so does a call from a lower room to a higher one.
"""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from lightning.pytorch import Trainer
from support import ROOT
from support.loaders import loader
from support.pages import table_rows
from support.stages import joint

import nla as package
from nla.config.check import check_train
from nla.config.compose import compose
from nla.models.pair import NLA
from nla.models.target import Target
from nla.training.program import train

PACKAGE = Path(package.__file__).parent
Call = tuple[str, str]  # file of the repository, qualified name
ONCE = (
    "JointStage.collect", "Verbalizer.sample", "JointStage.with_reference", "JointStage.terms", "Reconstructor.forward",
    "Verbalizer.forward", "Reward.__call__", "group_advantages", "policy_gradient_loss", "Stage.update",
)  # fmt: skip
Between = tuple[str, str, str]  # room of the caller, room of the function, its plain name


def calls_of(run: Callable[[], Any]) -> tuple[list[Call], set[Between]]:
    """The functions of nla that `run` enters, in order, and the calls between rooms.

    The caller is the nearest frame of nla, so a call that passes through Lightning or torch counts too.
    """
    entered: list[Call] = []
    between: set[Between] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or frame.f_code.co_name == "<module>" or not path.is_relative_to(PACKAGE):
            return
        entered.append((f"nla/{path.relative_to(PACKAGE)}", frame.f_code.co_qualname))
        caller = frame.f_back
        while caller is not None and not Path(caller.f_code.co_filename).is_relative_to(PACKAGE):
            caller = caller.f_back
        if caller is not None and room(caller) != room(frame):
            between.add((room(caller), room(frame), frame.f_code.co_name))

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return entered, between


def room(frame: FrameType) -> str:
    return Path(frame.f_code.co_filename).relative_to(PACKAGE).parts[0].removesuffix(".py")


def floors() -> dict[str, int]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {name.strip(): -floor for floor, layer in enumerate(layers) for name in layer.split("|")}


def upward(between: set[Between]) -> set[Between]:
    """The calls to a room that is not below the caller's."""
    floor = floors()
    return {call for call in between if floor[call[1]] >= floor[call[0]]}


def steps_of(heading: str) -> list[Call]:
    """The rows (file, function) of the table under a heading of docs/architecture.md."""
    rows = table_rows(Path("docs/architecture.md"), "step", "file", "function", under=heading)
    return [(file.strip("`"), name.strip("`")) for _, file, name in rows]


def assert_entered_in_order(entered: list[Call], steps: list[Call]) -> None:
    assert [step for step in steps if step not in entered] == [], "never entered"
    firsts = [entered.index(step) for step in steps]
    assert firsts == sorted(firsts), [steps[number] for number in sorted(range(len(steps)), key=lambda n: firsts[n])]


def test_one_activation_from_the_data_to_the_update(nla: NLA, target: Target) -> None:
    stage, steps = joint(nla, target, micro_batch_size=64), steps_of("The way of one activation")
    data = loader(target.tokenizer)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=1, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    entered, between = calls_of(lambda: trainer.fit(stage, data))
    assert len(steps) >= 12
    assert_entered_in_order(entered, steps)
    assert {("training", "models"), ("models", "core")} <= {call[:2] for call in between}
    assert upward(between) == set()
    # the stage enters each model once per phase: nothing is sampled, reconstructed or updated a second time
    counts = {name: sum(function == name for _, function in entered) for name in ONCE}
    assert counts == dict.fromkeys(ONCE, 1) | {"Verbalizer.forward": 2}  # the reference's log-probs and the policy's


def test_one_config_key_from_the_command_line_to_the_constructor(
    here: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.runs import overrides

    stages: list[Any] = []
    monkeypatch.setattr("nla.training.program.fit", lambda trainer, stage, data, start: stages.append(stage))
    given = [*overrides(tiny_folder, "walk", "joint"), "stage.joint.clip_norm=0.125"]
    entered, between = calls_of(lambda: train(check_train(compose("train", given))))
    assert [stage.clip_norm for stage in stages] == [0.125]
    steps = steps_of("The way of one config key")
    assert len(steps) >= 6
    assert_entered_in_order(entered, steps)
    # the check makes each record that a config describes once, for its own rules (nla.config.targets)
    assert {call for call in upward(between) if call[::2] != ("config", "__post_init__")} == set()


def test_a_call_upward_is_seen() -> None:
    """A config that names a class above: its `__post_init__` is entered from the check, the one exception above."""
    settings = compose("train", ["experiment=world"])
    _, between = calls_of(lambda: check_train(settings))
    assert ("config", "training", "__post_init__") in upward(between)

"""A run that an earlier version began, with its class paths of that time, is continued and evaluated by this one."""

from pathlib import Path

import pytest
import yaml
from hydra.utils import get_class

from nla.config.check import plain_config
from nla.config.compose import compose
from nla.config.renamed import CLASSES, read_recorded
from nla.config.run_folder import record_config
from nla.errors import ConfigError
from nla.evaluation.program import evaluation_dtype, recorded_data

# the recipe of that time, where it differs from today's
THEN = [
    "experiment=world_smoke",
    "hardware=cpu",
    "data.early=0",
    "data.source.emphasis=null",
    "stage.reconstructor.reworded=0",
    "stage.joint.reworded=0",
    "data.min_context=48",
    "stage.verbalizer.data.min_context=48",
    "stage.reconstructor.data.min_context=48",
    "stage.joint.data.min_context=48",
]
OLD = Path(__file__).parent / "old_run.yaml"  # as commit b543393 wrote it for `train.py experiment=world_smoke`


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of that run, all stages begun."""
    folder = tmp_path / "old"
    for stage in ("verbalizer", "reconstructor", "joint"):
        (folder / "stages" / stage).mkdir(parents=True)
    (folder / "nla").mkdir()
    (folder / "config.yaml").write_text(OLD.read_text())
    return folder


def test_every_old_class_path_leads_to_a_class() -> None:
    for old, new in CLASSES.items():
        assert get_class(new).__module__.startswith("nla."), old


def test_an_old_run_is_continued(run: Path) -> None:
    assert "nla.world.WorldSource" in (run / "config.yaml").read_text()
    cfg = compose("train", THEN)
    cfg.layer.index = read_recorded(run)["layer"]["index"]
    record_config(plain_config(cfg), run)
    assert "nla.data.world.WorldSource" in (run / "config.yaml").read_text()


def test_an_old_run_with_another_value_is_still_refused(run: Path) -> None:
    recorded = yaml.safe_load(OLD.read_text())
    recorded["stage"]["joint"]["warmup_steps"] += 1
    (run / "config.yaml").write_text(yaml.safe_dump(recorded))
    cfg = compose("train", THEN)
    cfg.layer.index = recorded["layer"]["index"]
    with pytest.raises(ConfigError, match=r"another stage\.joint\.warmup_steps"):
        record_config(plain_config(cfg), run)


def test_an_old_run_is_evaluated_on_its_own_data(run: Path) -> None:
    assert recorded_data(run / "nla").source["_target_"] == "nla.data.world.WorldSource"
    assert evaluation_dtype(run, {}) == "float32"

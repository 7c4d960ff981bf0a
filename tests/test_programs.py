"""The programs as a person runs them: train, resume, sweep, evaluate, explain, and the notebook, on the smoke run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
import torch
from nbclient import NotebookClient
from support import ROOT
from support.programs import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOKE = ["experiment=world_smoke", "hardware=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a finished and evaluated smoke run."""
    folder = tmp_path_factory.mktemp("work")
    run("train.py", *SMOKE, cwd=folder)
    run("evaluate.py", "nla=runs/world_smoke/nla", "evaluation.documents=16", cwd=folder)
    return folder


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(folder: Path) -> None:
    run_folder = folder / "runs/world_smoke"
    for stage in ("verbalizer", "reconstructor", "joint"):
        assert (run_folder / "stages" / stage / "metrics.csv").is_file()
        assert list((run_folder / "stages" / stage).rglob("events.out.tfevents*"))
        assert (run_folder / "stages" / stage / "nla/verbalizer/nla_meta.yaml").is_file()
    meta = (run_folder / "nla/verbalizer/nla_meta.yaml").read_text()
    assert "base_checkpoint: world" in meta and str(ROOT) not in meta
    assert str(ROOT) not in (run_folder / "config.yaml").read_text()
    header = (run_folder / "stages/joint/metrics.csv").read_text().splitlines()[0]
    for name in ("reward", "kl", "fve_batch", "explanation_tokens", "well_formed", "validation/fve_normalized_mean"):
        assert f"joint/{name}" in header


@pytest.mark.slow
def test_tensorboard_shows_distributions_and_compares_runs(folder: Path) -> None:
    stage = folder / "runs/world_smoke/stages/joint"
    tags: dict[str, set[str]] = {"histograms": set(), "scalars": set()}
    hparams = False
    for path in stage.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind in tags:
            tags[kind] |= set(events.Tags()[kind])
        hparams = hparams or (
            bool(events.summary_metadata) and "_hparams_/session_start_info" in events.summary_metadata
        )
    assert {"joint/validation/cosine", "joint/validation/explanation_tokens"} <= tags["histograms"]
    assert any(name.startswith("joint/validation/fve_from_") for name in tags["scalars"])
    assert hparams


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(folder: Path) -> None:
    pair = folder / "runs/world_smoke/stages/joint/nla/verbalizer/model.safetensors"
    before = pair.stat().st_mtime_ns
    run("train.py", *SMOKE, cwd=folder)
    assert pair.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("change", ["stage.joint.steps=2", "reward.kind=neg_log_error", "sampling.group_size=2"])
def test_settings_of_a_stage_that_stands_cannot_change_unnoticed(folder: Path, change: str) -> None:
    shown = run("train.py", *SMOKE, change, cwd=folder, status=2)
    assert "holds a run with another stage.joint" in shown
    assert "name=<another>" in shown


@pytest.mark.slow
def test_a_finished_stage_is_made_longer_with_the_same_command(folder: Path) -> None:
    name = ["name=again", "nla=runs/world_smoke/stages/reconstructor/nla", "stages=[joint]"]
    run("train.py", *SMOKE, *name, "stage.joint.steps=2", cwd=folder)
    stage = folder / "runs/again/stages/joint"
    shown = run("train.py", *SMOKE, *name, cwd=folder)
    assert "joint: 3 steps" in shown and (folder / "runs/again/nla/verbalizer").is_dir()
    lines = [line.split(",") for line in (stage / "metrics.csv").read_text().splitlines()]
    assert [line[0] for line in lines[1:]] == ["1", "2", "3", "3"]  # and the validation of the last step


@pytest.mark.slow
def test_evaluation_writes_figures_and_the_rows_behind_them(folder: Path) -> None:
    metrics = json.loads((folder / "runs/world_smoke/evaluation/metrics.json").read_text())
    rows = pq.read_table(folder / "runs/world_smoke/evaluation/samples.parquet")
    assert metrics["n"] == rows.num_rows and metrics["documents"] == 16
    assert metrics["command"].startswith("python evaluate.py nla=runs/world_smoke/nla")
    assert set(metrics["controls"]) >= {"mean", "constant_direction", "empty_text", "shuffled", "source_text"}
    assert metrics["claims"]["true_share"] is not None and metrics["fve_warm_start"] is not None


@pytest.mark.slow
def test_evaluation_on_a_gpu_that_is_not_there_says_so(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    shown = run("evaluate.py", "nla=runs/world_smoke/nla", "hardware=gpu", cwd=folder, status=2)
    assert "hardware.trainer.accelerator=gpu: this machine has no GPU" in shown


@pytest.mark.slow
def test_a_sweep_has_a_folder_per_job_and_one_summary(folder: Path) -> None:
    stage = "stage.reconstructor"
    short = ["stages=[reconstructor]", f"{stage}.steps=2", f"{stage}.trainer.val_check_interval=2"]
    run("train.py", "-m", *SMOKE, *short, "layer.index=1,2", cwd=folder)
    sweep = folder / "runs/world_smoke/sweep"
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert len(jobs) == 2 and all("layer.index=" in job for job in jobs)
    shown = run("evaluate.py", "nla=runs/world_smoke/sweep", "evaluation.documents=8", cwd=folder)
    rows = json.loads((sweep / "summary.json").read_text())
    assert [row["layer"] for row in rows] == [1, 2] and all(row["fve"] is not None for row in rows)
    assert (sweep / "summary.png").stat().st_size > 5000 and "true statements" in shown


@pytest.mark.slow
def test_explain_speaks_about_a_persons_own_sentence(folder: Path) -> None:
    from nla.commands.cli import main

    pair = str(folder / "runs/world_smoke/nla")
    assert main(["explain", pair, "Anna the sailor saw the harbour.", "--positions", "last"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer.index=9"], "layer.index=9: the model has 5 blocks"),
        (["stage.joint.optimizer.lrr=1"], "did you mean"),
        (["data=text", "data.path=/nowhere"], "data.path=/nowhere"),
        (["model.marker=xyzq"], "marker 'xyzq' is not one token"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    shown = run("train.py", *SMOKE, *arguments, cwd=tmp_path, status=2)
    assert message in shown and "Traceback" not in shown
    assert len([line for line in shown.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.slow
def test_the_benchmark_of_rewards_runs_small(folder: Path) -> None:
    pair = folder / "runs/world_smoke/stages/reconstructor/nla"
    sizes = ["--steps=1", "--documents=4", "--prefixes", "2", "8", "--variants", "length_0.005"]
    places = ["--runs", str(folder / "rewards"), "--output", str(folder / "figures")]
    run("benchmarks/rewards.py", "--quick", "--pair", str(pair), *sizes, *places, cwd=folder)
    variant = json.loads((folder / "figures/rewards.json").read_text())["variants"]["length_0.005"]
    assert [part["tokens"] for part in variant["prefixes"]] == [2, 8]
    assert variant["fve_warm_start"] is not None and variant["frozen_reconstructor"]["fve"] is not None
    assert "per_token: 0.005" in (folder / "rewards/reward_length_0.005/config.yaml").read_text()
    assert (folder / "figures/rewards.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_tables_of_the_pages_come_from_evaluated_runs(folder: Path) -> None:
    pages = folder / "pages"
    (pages / "docs/records").mkdir(parents=True)
    for page in ("README.md", "docs/records/results.md"):
        (pages / page).write_text("before\n<!-- world -->\nstale\n<!-- /world -->\nafter\n")
    figures = ["--seconds", "12", "--peak", "1.5", "--pages", str(pages)]
    for _ in range(2):  # written anew, not added
        run("benchmarks/world_table.py", "runs/world_smoke", "runs/world_smoke", *figures, cwd=folder)
    readme, results = ((pages / page).read_text() for page in ("README.md", "docs/records/results.md"))
    metrics = json.loads((folder / "runs/world_smoke/evaluation/metrics.json").read_text())
    for page in (readme, results):
        assert page.startswith("before\n") and page.endswith("\nafter\n") and "stale" not in page
        assert page.count(f"**{metrics['fve']:.3f}**") == 1 and "12 s with the packages" in page
    assert readme.count("(cosine") == 2 and results.count("(cosine") == 5
    assert f"| FVE, greedy | 0.65 (0.70) | {metrics['fve']:.3f}, {metrics['fve']:.3f} |" in results


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """What a notebook prints, with other values in its cell of settings."""
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for key, value in settings.items():
        line = f"{key} = {value}".replace("\\", r"\\")
        cell.source, count = re.subn(rf"(?m)^{key} = (?:\"[^\"]*\"|\S+)", line, cell.source)
        assert count == 1, key
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_outside_the_environment_one_line_says_what_to_do(program: str) -> None:
    """-S: without site-packages, as an interpreter that was not set up."""
    done = subprocess.run([sys.executable, "-S", str(ROOT / program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"no module named '\w+': activate the environment .*\n", done.stderr)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_worth_reading_without_running_it(path: Path) -> None:
    """Outputs are saved, at least one of them is a picture or a table of words, and none is an error."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any(output.get("text", "").strip() for output in outputs), "python notebooks/run.py saves them"
    assert path.stem == "own_vectors" or any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.slow
def test_the_notebook_explore_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"PAIR": '"runs/world_smoke/nla"', "EVALUATION": '"runs/world_smoke/evaluation"'}
    said = executed("explore", folder, monkeypatch, **settings)
    assert "KL(original || explanation)" in said and "FVE" in said
    assert "hook 1 block later" in said and "before (" in said and "thunder" in said


@pytest.mark.slow
def test_the_notebook_read_a_run_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = executed("read_a_run", folder, monkeypatch, RUN='"runs/world_smoke"')
    assert "warm start (" in said and "final (" in said and "FVE" in said


@pytest.mark.slow
def test_the_notebook_own_vectors_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = executed("own_vectors", folder, monkeypatch, PAIR='"runs/world_smoke/nla"')
    assert "difference" in said and "random" in said and "as it is" in said


@pytest.mark.slow
def test_the_notebook_steering_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"PAIR": '"runs/world_smoke/nla"', "TEXT": '"On a stormy night Anna found a map in the harbour and"'}
    said = executed("steering", folder, monkeypatch, **settings)
    assert "norm of the direction" in said and "as it is" in said and "random" in said


@pytest.mark.slow
def test_the_notebook_which_layer_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "texts").mkdir(exist_ok=True)
    for number in range(40):
        words = " ".join(
            ("Anna saw the harbour", "the dog barks", "it was a stormy night")[(number + k) % 3] for k in range(9)
        )
        (folder / f"texts/{number}.txt").write_text(f"{number} {words}.")
    said = executed("which_layer", folder, monkeypatch, MODEL='"world"', TEXTS='"texts"', SWEEP='"nowhere"')
    assert "proposed block:" in said and "no sweep" in said

"""Each benchmark runs at tiny size and leaves its record; no time is asserted."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.programs import Program

from nla.config.check import check_train
from nla.config.compose import compose

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
RECORD = {"benchmark", "command", "date", "machine", "versions", "quick", "repeats", "rows", "figures"}
ROW = {"key", "what", "against", "unit", "ours", "other", "ratio"}


def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    program = Program(f"benchmarks/{script}", *map(str, options), cwd=FOLDER.parent)
    output, errors = program.communicate(timeout=120)
    return subprocess.CompletedProcess([script], program.returncode or 0, output, errors)


def record_of(name: str, folder: Path, *options: str | Path) -> dict[str, Any]:
    done = run(f"{name}.py", "--quick", "--repeats", "1", "--output", folder, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / f"{name}.json").read_text())
    assert set(record) == RECORD
    assert record["benchmark"] == name and record["quick"] and record["repeats"] == 1
    assert {"cpu", "cores_used", "load"} <= set(record["machine"]) and {"torch", "python"} <= set(record["versions"])
    for row in record["rows"]:
        assert set(row) >= ROW
        assert row["what"] in done.stdout
    return record


def test_rollout(tmp_path: Path) -> None:
    record = record_of("rollout", tmp_path)
    keys = [row["key"] for row in record["rows"]]
    assert keys == [
        "rollout_world", "bound_rollout_world", "gemm_share_world",
        "rollout_random", "bound_rollout_random", "rollout_random_per_activation", "gemm_share_random",
        "rollout_arithmetic",
    ]  # fmt: skip
    for task in ("world", "random"):
        figures = record["figures"][task]
        assert len(figures["profile"]) == 8 and figures["operations"]["weights"] > 0
        assert {"ours", "other"} == set(figures["lengths"][task])
    lengths = record["figures"]["random"]["lengths"]["random"]["ours"]
    assert 1 <= lengths["p10"] <= lengths["mean"] <= 12  # the cap: declared stop ids do stop


def test_reading(tmp_path: Path) -> None:
    record = record_of("reading", tmp_path)
    assert [row["key"] for row in record["rows"]] == ["reading"]
    assert record["figures"]["tokens"] < record["figures"]["tokens_padded_by_the_other"]


def test_scoring(tmp_path: Path) -> None:
    (row,) = record_of("scoring", tmp_path)["rows"]
    assert row["key"] == "scoring" and row["work"] == {"ours": [8.0], "other": [8.0]}


def test_joint_step_has_the_same_loss_and_gradients_in_both_forms(tmp_path: Path) -> None:
    record = record_of("joint_step", tmp_path)  # it compares them before it times anything
    row, bound = record["rows"]
    assert row["key"] == "joint_step" and row["unit"] == "s"
    assert bound["ours"] < row["ours"] and bound["ratio"] > row["ratio"]  # products are a part of the step
    for way in ("ours", "other"):
        parts = record["figures"]["seconds"][way]
        assert set(parts) == {"rollout", "scoring", "update"}
        assert sum(parts.values()) == pytest.approx(row[way], rel=0.2)
    assert 0 < record["figures"]["separate_scoring"]["share"] < 1


def test_guesses() -> None:
    done = run("guesses.py", "--documents", "12", "--samples", "0")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:6] for line in done.stdout.splitlines()[2:]]
    assert {"hero", "place", "weather"} <= {row[0].strip() for row in rows}
    assert all(0 <= float(row[1]) <= 1 and int(row[3]) <= 12 for row in rows)
    assert max(float(row[1]) for row in rows) > 0  # even the untrained pair names something


def test_growth(tmp_path: Path) -> None:
    record = record_of("growth", tmp_path, "--figure", tmp_path / "growth.png")
    varied = ("activations", "samples", "new tokens", "prompt tokens", "parameters")
    for axis, row in zip(varied, record["rows"], strict=True):
        assert row["what"].endswith(axis) and row["ours"] == record["figures"][axis]["slope"]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_memory(tmp_path: Path, tiny_folder: str) -> None:
    record = record_of("memory", tmp_path, "--model", tiny_folder)
    assert [row["key"] for row in record["rows"]] == ["memory_separate", "memory_full"]
    weights = {way: found[0]["weights_mebibytes"] for way, found in record["figures"].items()}
    assert weights["shared"] < weights["separate"]
    assert all(found[0]["mebibytes"] > 0 for found in record["figures"].values())


def made(key: str, ratio: float) -> dict[str, Any]:
    row = {"key": key, "what": f"what of {key}", "against": "slow", "unit": "s", "ours": 1.0, "other": ratio}
    about = {"machine": {"cpu": "a cpu", "cores_used": 1, "load": 0.5}, "versions": {"torch": "2"}}
    return {"benchmark": key, "command": f"run {key}", "date": "2026-01-01", "rows": [{**row, "ratio": ratio}], **about}


def test_table_stands_between_its_comments_with_the_marks(tmp_path: Path) -> None:
    for key, ratio in (("joint_step", 3.5), ("reading", 7.0), ("growth_samples", 1.2), ("memory_full", 2.0)):
        (tmp_path / f"{key}.json").write_text(json.dumps(made(key, ratio)))
    (tmp_path / "another.json").write_text('{"seconds": 1}')  # a measurement of another kind
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    for _ in range(2):
        assert run("table.py", "--results", tmp_path, "--page", page).returncode == 0
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:-2]]
    assert [(row[0], row[4], row[5]) for row in cells] == [
        ("what of reading", "**7.00**", "≥ 8: no"),
        ("what of joint_step", "**3.50**", "≥ 3: yes"),
        ("what of growth_samples", "**1.20**", "≤ 1: no"),
        ("what of memory_full", "**2.00**", "reported"),
    ]


def test_the_page_shows_what_the_records_hold(tmp_path: Path) -> None:
    """No figure of its tables was typed, and none is older than its record."""
    page = FOLDER.parent / "docs/records/benchmarks.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    assert run("table.py", "--page", copy).returncode == 0
    assert copy.read_text() == page.read_text()
    step = json.loads((FOLDER / "results/gpu_joint.json").read_text())["figures"]["step"]
    assert f"**{step:.1f} s**" in page.read_text()


def test_table_says_what_a_page_lacks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no comments")
    done = run("table.py", "--results", tmp_path, "--page", page)
    assert done.returncode == 2 and "<!-- table -->" in done.stderr
    assert page.read_text() == "no comments"


def test_log_probs(tmp_path: Path) -> None:
    assert len(record_of("log_probs", tmp_path)["rows"]) == 2


def test_the_step_of_one_gpu_runs_small_on_a_cpu(tmp_path: Path) -> None:
    figures = record_of("gpu_joint", tmp_path, "--device", "cpu")["figures"]
    assert set(figures["seconds"]) == {"rollout", "scoring", "update"}
    assert figures["tokens"] > 0 and figures["limit_update"] > 0


def test_gpu_joint_with_all_weights(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--full", "--checkpointing", "--generate", "--profile", tmp_path / "profile.txt"]
    done = run("gpu_joint.py", "--quick", "--repeats", "1", "--output", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu_joint_full.json").read_text())
    assert [row["key"] for row in record["rows"]] == ["rollout_gpu"] and record["machine"]["gpu"] == "cpu"
    assert record["figures"]["trained"] == "all weights"
    assert "aten::" in (tmp_path / "profile.txt").read_text()


def test_precision(tmp_path: Path) -> None:
    assert max(record_of("precision", tmp_path)["figures"]["relative_error"].values()) < 1e-2


def test_the_recipe_of_quotes_is_one_that_train_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import quotes

    folder = quotes.write_texts(tmp_path / "texts", 5)
    assert len(list(folder.glob("*.txt"))) == 5
    for name in quotes.VARIANTS:
        settings = check_train(compose("train", [*quotes.recipe(folder), *quotes.rewards.VARIANTS[name]]))
        assert settings.reward["reads"] == {"neg_error": "whole"}.get(name, name)


def test_fishers_exact_test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 of 4 against 1 of 4: (1 + 16 + 16 + 1) / 70 of all ways to draw; the tea of Fisher's lady."""
    monkeypatch.syspath_prepend(FOLDER)
    from world_table import fisher

    assert fisher(3, 4, 1, 4) == pytest.approx(34 / 70)
    assert fisher(5, 10, 50, 100) == pytest.approx(1.0)

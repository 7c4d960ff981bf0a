"""docs/guides/real-models.md: the programs take its commands, and its figures are those of the plan beside them."""

import json
import re
from pathlib import Path

import pytest

from nla.commands.cli import main
from nla.config.compose import compose

PAGE = (Path(__file__).resolve().parent.parent / "docs/guides/real-models.md").read_text(encoding="utf-8")
GIB = 2**30
SMALL = ["planning=h100", "planning.memory_gib=24"]
RECIPES = {
    "`qwen2_5_0_5b`": ["experiment=qwen2_5_0_5b", *SMALL],
    "`qwen2_5_7b_24gb`": ["experiment=qwen2_5_7b_24gb", *SMALL],
    "the same in bfloat16, 80 GB": ["experiment=qwen2_5_7b_24gb", "model.dtype=bfloat16", "planning=h100"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_memory_and_time_are_those_of_the_plan(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").touch()
    assert main(["plan", "--json", *RECIPES[recipe], f"data.path={tmp_path / 'a.jsonl'}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {recipe} | ") and "GiB" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    for cell, stage in zip(cells[:3], plan["stages"], strict=True):
        memory, hours = re.fullmatch(r"([\d.]+) GiB, ([\d.]+) h", cell).groups()  # pyright: ignore[reportOptionalMemberAccess]
        assert float(memory) == pytest.approx(stage["peak_bytes"] / GIB, abs=0.06)
        assert float(hours) == pytest.approx(stage["hours"], rel=0.05)
    assert float(cells[3].removesuffix(" h")) == pytest.approx(plan["hours"], abs=0.06)
    assert (cells[4] == "yes") == plan["fits"]


@pytest.mark.parametrize("dtype", ["nf4", "bfloat16"])
def test_memory_of_an_evaluation_is_that_of_sampling(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").touch()
    given = ["experiment=qwen2_5_7b_24gb", f"model.dtype={dtype}", "planning=h100", f"data.path={tmp_path / 'a.jsonl'}"]
    assert main(["plan", "--json", *given]) == 0
    held = json.loads(capsys.readouterr().out)["stages"][2]["memory"]["sample"]
    said = re.sub(r"\s+", " ", PAGE)
    in_bits, in_bfloat16, cache, buffers = re.search(  # pyright: ignore[reportOptionalMemberAccess]
        r"([\d.]+) GiB of weights in 4 bits, ([\d.]+) in bfloat16, ([\d.]+) of cache and ([\d.]+) of buffers", said
    ).groups()
    figures = {"weights": in_bits if dtype == "nf4" else in_bfloat16, "cache": cache, "buffers": buffers}
    for name, figure in figures.items():
        assert float(figure) == pytest.approx(held[name] / GIB, abs=0.006)
    assert sum(held[name] for name in figures) / GIB < 20.9


def test_its_commands_compose(tmp_path: Path):
    """Overrides of train.py and evaluate.py as written, with values for what a person fills in."""
    (tmp_path / "a.jsonl").touch()
    found = re.findall(r"^python (train|evaluate)\.py ([^#\n]+)", PAGE.replace("\\\n", ""), re.MULTILINE)
    assert len(found) >= 6
    for program, words in found:
        words = words.replace("<file>", str(tmp_path / "a.jsonl")).replace("<measured>", "10")
        compose(program, words.replace("<released pair>", "org/pair-av").split())

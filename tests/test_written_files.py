"""Every file of the package is written through `nla.files`: whole or not at all."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "nla"
WRITERS = {"write_text", "write_bytes", "savefig", "to_csv", "write_table", "save_file", "ParquetWriter"}
WRITERS |= {"json.dump", "yaml.dump", "torch.save"}
LAST_NAMES = {name.rpartition(".")[2] for name in WRITERS}
SAFE = {"files.write_text", "format.write_table", "writer.write_table"}  # ours; the last fills a scratch file
ALLOWED = {
    "files.py": "the home of atomic writes",
    "core/summary.py": "into the scratch folder of a pair (files.new_folder)",
    "models/lora.py": "into the scratch folder of a pair (files.new_folder)",
    "models/pretrained/format.py": "into the scratch folder of a pair (files.new_folder)",
    "data/shards/format.py": "a scratch file, read back with its checksums before it is moved",
    "data/prepare/released.py": "a scratch file, written in several tables before it is moved",
    "evaluation/figures.py": "within files.new_file",
    "evaluation/files.py": "within files.new_file",
    "evaluation/sweep.py": "within files.new_file",
    "commands/layers.py": "within files.new_file",
    "pretraining/loop.py": "resume.pt within files.new_file; a line appended to curve.csv",
    "training/callbacks/checkpointing.py": "into the scratch folder of a checkpoint, flushed",
}


def raw_writes(source: str) -> Iterator[int]:
    """The lines on which a file is written without `nla.files`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            last = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = ast.unparse(node.func) if last in LAST_NAMES else last
            if (last == "open" and _writes(node)) or (WRITERS & {name, last} and name not in SAFE):
                yield node.lineno


def _writes(call: ast.Call) -> bool:
    """Whether a mode of `open` writes: w, a or x, or r+."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return any(len(mode) <= 3 and set(mode) & set("wax+") and set(mode) <= set("wax+brt") for mode in modes)


def test_every_file_is_written_through_files() -> None:
    found = {path.relative_to(ROOT).as_posix(): list(raw_writes(path.read_text())) for path in ROOT.rglob("*.py")}
    raw = {name: lines for name, lines in found.items() if lines and name not in ALLOWED}
    assert not raw, f"written without nla.files, at these lines: {raw}"


def test_raw_writes_are_recognized() -> None:
    assert list(raw_writes("path.write_text(t)\nopen(p, 'wb')\np.open(mode='a')\ntorch.save(s, p)")) == [1, 2, 3, 4]
    assert not list(raw_writes("files.write_text(p, t)\nopen(p)\np.open('rb')\njson.dumps(t)"))

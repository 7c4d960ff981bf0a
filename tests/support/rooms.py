"""The table of rooms in docs/architecture.md, from the import contract and the rooms' docstrings.

python tests/support/rooms.py        write it
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- rooms -->\n", "<!-- /rooms -->"


def purpose(room: str) -> str:
    """The first line of the docstring of `nla/<room>/__init__.py` or `nla/<room>.py`."""
    folder = ROOT / "nla" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def table() -> str:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    lines = ["| floor | room | purpose |", "|---|---|---|"]
    for floor, layer in zip(range(len(layers), 0, -1), layers, strict=True):
        rooms = [room.strip() for room in layer.split("|")]
        lines += [f"| {floor} | `nla.{room}` | {purpose(room)} |" for room in rooms]
    return "\n".join(lines) + "\n"


def page_with_table() -> str:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(), encoding="utf-8")

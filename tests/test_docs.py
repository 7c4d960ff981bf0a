"""What the documentation says of the code is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`((?:faults/)?test_\w+\.py)?(?:::(test_\w+))?`")


def test_every_test_that_a_promise_names_exists() -> None:
    """docs/reliability.md and docs/guards.md; a name without its file belongs to the file named last."""
    found = 0
    for page in ("docs/reliability.md", "docs/guards.md"):
        file = None
        for named, test in NAMED.findall((ROOT / page).read_text(encoding="utf-8")):
            file = named or file
            assert file is not None or not test, f"{page}: {test} is named without its file"
            if file is None:
                continue
            path = next((p for p in (ROOT / "tests" / file, ROOT / "tests/faults" / file) if p.is_file()), None)
            assert path is not None, f"{page} names {file}, which does not exist"
            if test:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
                assert test in defined, f"{page} names {file}::{test}, which does not exist"
                found += 1
    assert found >= 20

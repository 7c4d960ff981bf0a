"""What the documentation says of the code is there."""

import ast
import re
import shlex

from support import ROOT

from nla.config.check import check_train
from nla.config.compose import compose

NAMED = re.compile(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`")


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
            path = next((ROOT / "tests").rglob(file), None)
            assert path is not None, f"{page} names {file}, which does not exist"
            if test:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
                assert test in defined, f"{page} names {file}::{test}, which does not exist"
                found += 1
    assert found >= 20


def test_the_commands_of_multi_node_compose_and_are_valid() -> None:
    """docs/multi-node.md: each line of the table, placeholders filled in, as the program itself checks it."""
    page = (ROOT / "docs/multi-node.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\|[^|]+\| `([^`]+)` \|", page, re.M)
    checked = 0
    for command in commands:
        words = shlex.split(re.sub(r"<[^>]+>", "x", command))
        program = next(place for place, word in enumerate(words) if word.endswith(".py"))
        overrides = [word.partition(",")[0] for word in words[program + 1 :] if word != "-m"]
        cfg = compose(words[program].removesuffix(".py"), overrides)
        if words[program] == "train.py":
            settings = check_train(cfg)
            ranks = settings.hardware.trainer["devices"] * settings.hardware.trainer["num_nodes"]
            per_node = int(words[words.index("--nproc-per-node") + 1]) if "torchrun" in words else None
            nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
            assert per_node is None or ranks == per_node * nodes, command
        checked += 1
    assert checked >= 10

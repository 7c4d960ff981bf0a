"""What the documentation says of the code is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from support import ROOT

from nla.config.check import check_train
from nla.config.compose import compose

PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`")


def test_every_test_that_a_promise_names_exists() -> None:
    """docs/guides/reliability.md and docs/guides/guards.md; a name without its file belongs to the file named last."""
    found = 0
    for page in ("docs/guides/reliability.md", "docs/guides/guards.md"):
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
    """docs/guides/multi-node.md: each line of the table, placeholders filled in, as the program itself checks it."""
    page = (ROOT / "docs/guides/multi-node.md").read_text(encoding="utf-8")
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


LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def without_code(page: str) -> str:
    return re.sub(r"(?ms)^```.*?^```|`[^`\n]+`", "", page)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(without_code((ROOT / page).read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}#{anchor}: no such heading"


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target, _ in LINK.findall(index.read_text(encoding="utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - linked == {index}

"""What the documentation says of the code is true: links, config keys, commands, files, modules, names, tests.

Code spans and code blocks are read; a page about Python (docs/guides/notebook.md) names no config keys.
"""

import ast
import importlib
import inspect
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from support import ROOT, rooms
from support.pages import table_rows, text_of

from nla import NLA
from nla.config.check import check_train
from nla.config.compose import compose
from nla.config.targets import takes

PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CURRENT = [page for page in PAGES if page.stem != "CHANGELOG"]  # the changelog also names what is gone
CONFIGURATION = ROOT / "docs/configuration.md"
STAGES = ("verbalizer", "reconstructor", "joint")

FENCE = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^ *```")
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
OVERRIDE = re.compile(r"(?<![\w.\-/@\"(\[{,:$=])\+?([a-z_][a-z_0-9]*(?:\.[\w<>]+)*)=(?!=)('[^']*'|\S*)")
CONFIG_KEY = re.compile(r"([a-z_]+)(\.(?:[a-z_0-9]+|<stage>|\*))+")
FILE = re.compile(r"(?<![\w./>-])(?:nla|tests|benchmarks|conf|docs|notebooks)/[\w./-]*\w(?![\w<*{])")
MODULE = re.compile(r"(?<![\w./-])nla(?:\.[A-Za-z_]\w*)+")
NAME = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)")
NAMED_TEST = re.compile(r"`((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?`")
FOREIGN = ("nla_inference.py",)  # a file of the released code
FILE_ENDINGS = ("yaml", "py", "json", "md", "sqlite", "csv", "parquet", "jsonl", "toml", "ipynb", "html")


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def spans(page: Path) -> list[str]:
    return [span.replace("\\|", "|") for span in SPAN.findall(without_blocks(text_of(page)))]


def blocks(page: Path, *languages: str) -> list[str]:
    """Code blocks of these languages ("" is a block of commands or output), continued lines joined."""
    return [body.replace("\\\n", " ") for _, language, body in FENCE.findall(text_of(page)) if language in languages]


# links


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(SPAN.sub("", without_blocks(text_of(page)))):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}#{anchor}: no such heading"


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / target).resolve() for target, _ in LINK.findall(index.read_text(encoding="utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - linked == {index}


# config keys and groups


@cache
def options() -> dict[str, set[str]]:
    """The files of each group of conf/."""
    groups: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "conf").glob("*/*.yaml"):
        groups[path.parent.name].add(path.stem)
    return groups


@cache
def config_nodes() -> dict[str, list[Any]]:
    """Every key that a file of conf/ sets, with the values that it has there."""
    nodes: dict[str, list[Any]] = defaultdict(list)
    for path in (ROOT / "conf").rglob("*.yaml"):
        text, group = path.read_text(encoding="utf-8"), path.parent.name
        prefix = "" if group == "conf" or "@package _global_" in text.splitlines()[0] else f"{group}."
        prefix = f"stage.{path.stem}." if group == "stage" else prefix
        for key, value in flattened(yaml.safe_load(text), prefix):
            nodes[key].append(value)
    for group in options():
        nodes[group].append(None)
    return nodes


def flattened(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if prefix:
        yield prefix.rstrip("."), node
    for name, child in node.items() if isinstance(node, dict) else ():
        if name not in ("defaults", "hydra"):
            yield from flattened(child, f"{prefix}{name}.")


def is_config_key(key: str) -> bool:
    """Whether a file of conf/ sets it, or the constructor that its parent names, or Lightning's Trainer, takes it."""
    if "<stage>" in key:
        return all(is_config_key(key.replace("<stage>", stage)) for stage in STAGES)
    key = re.sub(r"^evaluation\.judge(?=\.)", "teacher", key)  # where a teacher is mounted
    parent, _, name = key.rpartition(".")
    if name == "*":
        return is_config_key(parent)
    if key in config_nodes() or key.startswith("hydra."):
        return True
    nodes = [node for node in config_nodes().get(parent, []) if isinstance(node, dict)]
    taken = any("_target_" in node and takes(node, name) for node in nodes)
    return taken or (parent.endswith("trainer") and name in inspect.signature(Trainer).parameters)


def test_what_a_config_key_is() -> None:
    assert all(map(is_config_key, ("stage.<stage>.trainer.max_time", "data.source.shuffled", "hardware.trainer.*")))
    assert not any(map(is_config_key, ("stage.<stage>.kl", "stage.joint.optimizer.lrr", "rollout", "data.sources")))


def overrides(page: Path) -> Iterator[tuple[str, str]]:
    for code in [*blocks(page, ""), *(span for span in spans(page) if "(" not in span)]:
        found = OVERRIDE.findall(code)
        # values of Python are none; docs/configuration.md shows the form of an override, and a mistake with its message
        yield from (
            (key, value)
            for key, value in found
            if value not in ("True", "False") and key not in ("key", "group", "layer.idx")
        )


@pytest.mark.parametrize("page", [page for page in CURRENT if page.stem != "notebook"], ids=str)
def test_every_config_key_and_option_exists(page: Path) -> None:
    for key, value in overrides(page):
        assert is_config_key(key), f"{page} sets {key}={value}: no such key"
        if key in options() and re.fullmatch(r"[a-z]\w+", value) and value != "null":
            assert value in options()[key], f"{page} names {key}={value}: no such file in conf/{key}"
    relative = {key for prefix, key in key_tables(page) if prefix}
    for span in spans(page):
        if span not in relative and CONFIG_KEY.fullmatch(span) and span.rpartition(".")[2] not in FILE_ENDINGS:
            top = span.partition(".")[0]
            assert top == "nla" or top not in config_nodes() or is_config_key(span), f"{page} names {span}: no such key"


def key_tables(page: Path) -> Iterator[tuple[str, str]]:
    """Of tables headed `key` or ``key under `<prefix>` ``: each prefix with each key of the first column."""
    prefixes: list[str] | None = None
    last = ""
    for line in without_blocks(text_of(page)).splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        if not line.startswith("|"):
            prefixes = None
        elif re.match(r"key\b", first):
            prefixes = [f"{prefix}." for prefix in SPAN.findall(first)] or [""]
        elif prefixes is not None:
            for key in SPAN.findall(first):
                last = last.rpartition(".")[0] + key if key.startswith(".") else key
                yield from ((prefix, last) for prefix in prefixes)


def test_the_key_tables_of_the_reference_name_keys() -> None:
    rows = [*key_tables(CONFIGURATION), *key_tables(ROOT / "docs/guides/guards.md")]
    assert len(rows) > 100
    assert [prefix + key for prefix, key in rows if not is_config_key(prefix + key)] == []


def test_no_key_has_two_rows_in_the_reference() -> None:
    keys = [prefix + key for prefix, key in key_tables(CONFIGURATION)]
    assert sorted(key for key in set(keys) if keys.count(key) > 1) == []


def test_the_reference_names_every_group_and_option() -> None:
    page = text_of(CONFIGURATION)
    assert set(re.findall(r"\*\*`(\w+)`\*\*", page)) == set(options())
    words = {word for span in spans(CONFIGURATION) for word in re.findall(r"\w+", span)}
    assert {group: names - words for group, names in options().items() if names - words} == {}


# commands


@cache
def verbs() -> set[str]:
    tree = ast.parse((ROOT / "nla/commands/cli.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {call.args[0].value for call in calls if call.func.attr == "add_parser"}  # pyright: ignore


def commands_of_nla(page: Path) -> set[str]:
    code = "\n".join([*blocks(page, ""), *spans(page)])
    return set(re.findall(r"(?m)(?:^|\|)nla ([a-z]\w*)", code))


def test_the_readme_names_every_verb() -> None:
    assert len(verbs()) >= 8 and verbs() - commands_of_nla(Path("README.md")) == set()


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_every_command_of_nla_exists(page: Path) -> None:
    assert commands_of_nla(page) - verbs() == set()


# files, modules and names


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_exists(page: Path) -> None:
    for code in [*blocks(page, "", "python"), *spans(page)]:
        for path in FILE.findall(code):
            assert (ROOT / path).exists(), f"{page} names {path}, which does not exist"
        for name in re.findall(r"(?<![\w./*>])[\w/]+\.py\b", code):
            folders = [ROOT / folder for folder in ("nla", "tests", "benchmarks")]
            assert any((ROOT / name).exists() or any(folder.rglob(name)) for folder in folders) or name in FOREIGN, (
                f"{page} names {name}, which does not exist"
            )


def test_every_page_that_code_or_config_names_exists() -> None:
    named: set[tuple[str, str]] = set()
    endings = {"nla": "py", "conf": "yaml", "tests": "py", "benchmarks": "py", "notebooks": "ipynb"}
    for folder, ending in endings.items():
        for path in (ROOT / folder).rglob(f"*.{ending}"):
            pages = re.findall(r"(?<![\w/])docs/[\w/-]+\.(?:md|png)", path.read_text(encoding="utf-8"))
            named |= {(str(path.relative_to(ROOT)), page) for page in pages}
    assert len(named) >= 20
    assert sorted((path, page) for path, page in named if not (ROOT / page).exists()) == []


def resolves(path: str) -> bool:
    """A module, or what one defines; `nla.<name>` may also be an attribute of a pair called `nla`."""
    parts = path.split(".")
    if hasattr(NLA, parts[1]) or parts[1] in inspect.signature(NLA.__init__).parameters:
        return True
    for count in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_every_module_and_class_exists(page: Path) -> None:
    assert not resolves("nla.app.evaluate") and resolves("nla.core.fve.FractionOfVarianceExplained")
    for span in spans(page):
        for path in MODULE.findall(span):
            assert resolves(path), f"{page} names {path}, which does not exist"


@cache
def definitions() -> dict[str, set[str]]:
    """Names that each module (by its last name) and each class of nla defines."""
    defined: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "nla").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined[path.stem] |= names_in(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                defined[node.name] |= names_in(node) | attributes_of(node) | {f"<{base}>" for base in bases}
    return defined


def names_in(node: ast.Module | ast.ClassDef) -> set[str]:
    names: set[str] = set()
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            names.add(child.name)
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def attributes_of(node: ast.ClassDef) -> set[str]:
    return {
        child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and ast.unparse(child.value) == "self"
    }


def defines(owner: str, name: str) -> bool:
    names = definitions()[owner]
    return name in names or any(defines(base[1:-1], name) for base in names if base.startswith("<"))


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_every_name_in_a_module_or_class_exists(page: Path) -> None:
    assert defines("prompts", "find_marker") and not defines("prompts", "parse_explanation")
    for span in spans(page):
        match = NAME.fullmatch(span.partition("(")[0])
        owner, name = match.groups() if match else ("", "")
        key = any(known.endswith(span) for known in config_nodes())
        if owner in definitions() and not key and name not in FILE_ENDINGS:
            assert defines(owner, name), f"{page} names {span}, which {owner} does not define"


# tests and commands that a page promises


def test_every_test_that_a_promise_names_exists() -> None:
    """docs/guides/reliability.md and docs/guides/guards.md; a name without its file is in the file named last."""
    count = 0
    for page in ("docs/guides/reliability.md", "docs/guides/guards.md"):
        file = None
        for named, test in NAMED_TEST.findall(text_of(Path(page))):
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
                count += 1
    assert count >= 20


def test_the_commands_of_multi_node_compose_and_are_valid() -> None:
    """docs/guides/multi-node.md: each line of the table, placeholders filled in, as the program itself checks it."""
    lines = re.findall(r"^\|[^|]+\| `([^`]+)` \|", text_of(Path("docs/guides/multi-node.md")), re.M)
    checked = 0
    for command in lines:
        words = shlex.split(re.sub(r"<[^>]+>", "x", command))
        program = next(index for index, word in enumerate(words) if word.endswith(".py"))
        given = [word.partition(",")[0] for word in words[program + 1 :] if word != "-m"]
        cfg = compose(words[program].removesuffix(".py"), given)
        if words[program] == "train.py":
            settings = check_train(cfg)
            ranks = settings.hardware.trainer["devices"] * settings.hardware.trainer["num_nodes"]
            per_node = int(words[words.index("--nproc-per-node") + 1]) if "torchrun" in words else None
            nodes = int(words[words.index("--nnodes") + 1]) if "--nnodes" in words else 1
            assert per_node is None or ranks == per_node * nodes, command
        checked += 1
    assert checked >= 10


def test_where_is_each_thing() -> None:
    """docs/architecture.md: what a newcomer looks for is in the file and under the name that the page gives."""
    rows = table_rows(Path("docs/architecture.md"), "what", "file", "name")
    assert len(rows) >= 15
    for question, file, name in rows:
        owner, _, member = name.strip("`").rpartition(".")
        owner = owner or Path(file.strip("`")).stem
        assert defines_in(file.strip("`"), owner, member), f"{question}: {file} does not define {name}"


def defines_in(file: str, owner: str, name: str) -> bool:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    if owner == Path(file).stem:
        return name in names_in(tree)
    return any(isinstance(node, ast.ClassDef) and node.name == owner and name in names_in(node) for node in tree.body)


def test_the_table_of_rooms_is_that_of_the_contract() -> None:
    assert rooms.PAGE.read_text(encoding="utf-8") == rooms.page_with_table(), "write it: python tests/support/rooms.py"

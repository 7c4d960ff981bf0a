"""Real English that every machine has: the documentation strings of Python's standard library, one file per module.

    python benchmarks/stdlib_text.py runs/stdlib_text

Modules are parsed, never imported; nothing is downloaded. Files depend on the Python version, which is printed.
"""

import argparse
import ast
import inspect
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"})
MARKUP = re.compile(r"^\s*(>>>|\.\.\. |\+[-=+]+\+|={3,}|-{3,})")
SHORTEST = 200  # characters of documentation, below which a module gives no file


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the text files go; must be empty or absent")
    folder: Path = parser.parse_args().folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        print(f"{folder} is not an empty folder: name another one", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    files = characters = words = 0
    for module in sorted(library.rglob("*.py")):
        relative = module.relative_to(library)
        if SKIPPED.intersection(relative.parts):
            continue
        text = "\n\n".join(docstrings(module))
        if len(text) < SHORTEST:
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        files, characters, words = files + 1, characters + len(text), words + len(text.split())
    print(f"{files} files, {characters} characters, {words} words, Python {platform.python_version()}")
    return 0


def docstrings(path: Path) -> Iterator[str]:
    """The documentation strings of a module, its classes and functions, in order and without repetition.

    Lines of examples, tables and rules are left out. A file that does not parse (some are samples of other versions'
    syntax) gives nothing.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    seen: set[str] = set()
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        lines = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").splitlines()
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if not MARKUP.match(line))).strip()
        if text and text not in seen:
            seen.add(text)
            yield text


if __name__ == "__main__":
    sys.exit(main())

"""The pages of documentation as text and as tables."""

from pathlib import Path

from support import ROOT


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def table_rows(page: Path, *header: str, under: str = "") -> list[list[str]]:
    """The cells of all tables of a page with this header, those under one heading where it is given."""
    text = text_of(page)
    if under:
        text = text.partition(f"\n## {under}\n")[2].partition("\n## ")[0]
    rows: list[list[str]] = []
    wanted = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else []
        wanted = (wanted or cells == list(header)) and bool(cells)
        if wanted and cells != list(header) and not line.startswith("|---"):
            rows.append(cells)
    return rows

"""Cells of the printed tables."""


def cells(value: float | None, interval: list[float] | None, form: str = "{:.3f}") -> tuple[str, str]:
    """A figure and its interval; a dash for what is missing."""
    shown = "-" if value is None else form.format(value)
    return shown, "-" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"

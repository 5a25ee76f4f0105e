"""Tables of benchmarks as Markdown files that state their command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmarks.environment import describe


def write_report(
    path: Path, title: str, command: str, doc: str, table: pd.DataFrame, more: Iterable[str] = ()
) -> None:
    """Write title, command, environment, what the script's docstring explains, and the table."""
    explained = doc.strip().split("\n\n", 2)[2]  # after its summary and its command
    text = [f"# {title}", "", f"`{command}`", f"({describe()})", "", explained, ""]
    path.write_text("\n".join([*text, to_markdown(table), "", *more]))


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    for row in table.itertuples(index=False):
        cells = [format_cell(name, value) for name, value in zip(table.columns, row, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(column: str, value: object) -> str:
    """One cell: few digits, and nothing where there is no number."""
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    if "gap" in column or "relative" in column:
        return f"{value:.1e}"
    return f"{value:.3f}" if "px" in column else f"{value:.2f}"

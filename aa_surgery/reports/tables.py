"""Tables: aligned plain text, and the same through rich where a person looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal, TextIO

from aa_surgery.errors import InputError

__all__ = ["print_table", "text_table"]

Align = Literal["left", "right"]
Cell = object


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], align: Sequence[Align] | None = None
) -> str:
    """Return an aligned table: a header, a rule, one line a row.

    Args:
        columns: The header.
        rows: One sequence a row, as long as the header; `str()` of each cell is shown.
        align: `"left"` or `"right"`, one a column; by default columns of numbers stand right.

    Raises:
        InputError: A row has another length than the header.

    >>> print(text_table(["site", "stride"], [["conv1", 2], ["layer2.0.conv2", 2]]))
    site            stride
    --------------  ------
    conv1                2
    layer2.0.conv2       2
    """
    cells, sides = _prepare(columns, rows, align)
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(w) if side == "right" else cell.ljust(w)
            for cell, w, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    title: str | None = None,
    align: Sequence[Align] | None = None,
    file: TextIO | None = None,
) -> None:
    """Print a table, by rich where it is installed and `file` is a terminal, else as plain text.

    Args:
        columns: As in `text_table`; so are `rows` and `align`.
        rows: The body.
        title: A line above it.
        align: Side of each column.
        file: Where to; standard output by default.
    """
    out = file or sys.stdout
    if out.isatty() and _print_rich(columns, rows, title, align, out):
        return
    heading = f"{title}\n" if title else ""
    print(heading + text_table(columns, rows, align), file=out)


def _print_rich(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    title: str | None,
    align: Sequence[Align] | None,
    file: TextIO,
) -> bool:
    """Print by rich; False where it is not installed."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    cells, sides = _prepare(columns, rows, align)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column, side in zip(columns, sides, strict=True):
        table.add_column(column, justify=side, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: a cell's [brackets] are no markup
    Console(file=file).print(table)
    return True


def _prepare(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], align: Sequence[Align] | None
) -> tuple[list[list[str]], list[Align]]:
    """Return the cells as text, and the side of each column."""
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise InputError(f"table row {number}: {len(row)} cells for {len(columns)} columns.")
    if align is not None and len(align) != len(columns):
        raise InputError(f"table: {len(align)} sides for {len(columns)} columns.")
    sides: list[Align] = (
        list(align)
        if align is not None
        else [
            "right" if rows and all(isinstance(r[i], (int, float)) for r in rows) else "left"
            for i in range(len(columns))
        ]
    )
    return [[str(cell) for cell in row] for row in rows], sides

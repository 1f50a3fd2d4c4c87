"""Tables: the same cells for a file and for a terminal."""

from __future__ import annotations

import io

import pytest

from aa_surgery.errors import InputError
from aa_surgery.reports import print_table, text_table


def test_tables_align_and_print_plainly_where_nobody_looks() -> None:
    out = io.StringIO()
    print_table(["name", "n"], [["a[b]", 10], ["long name", 2]], title="T", file=out)
    assert out.getvalue().splitlines() == [
        "T",
        "name        n",
        "---------  --",
        "a[b]       10",
        "long name   2",
    ]
    with pytest.raises(InputError, match="row 0: 1 cells for 2 columns"):
        text_table(["a", "b"], [["x"]])


def test_tables_on_a_terminal_show_every_cell() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    print_table(["name", "n"], [["a[b]", 10]], title="T", file=out)
    assert "a[b]" in out.getvalue()
    assert "10" in out.getvalue()

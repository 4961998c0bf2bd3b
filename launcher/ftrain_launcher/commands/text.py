"""How commands print for people: lines, and tables without frames."""

from __future__ import annotations

import sys
from typing import Any

_WIDTH_MAX = 10_000
"""Of a table: a pipe has no width, and what is cut off cannot be read anywhere."""


def print_line(text: str) -> None:
    """One line on stdout, however long, as it is."""
    sys.stdout.write(f"{text}\n")


def print_table(heads: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout; ``None`` is shown as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in row))
    console = Console(highlight=False, soft_wrap=True, width=_WIDTH_MAX)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():  # the last column is padded as well
        sys.stdout.write(f"{line.rstrip()}\n")

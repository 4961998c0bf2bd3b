"""What every benchmark shares: its options, its table, and the file of figures beside it (DESIGN 10).

A benchmark is run as ``.venv/bin/python scripts/bench/NAME.py [--quick] [--json FILE]``. Rivals run in the same
process tree, in turn with ours, on the same work; what has a limit is a ratio, since times alone mean nothing
on a shared machine. A missed limit is said, and is no error of the benchmark: its exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from processors import Given
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # job.py and leftovers.py, for the modules that import this one first

CLEAN_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Row:
    """One figure; with a limit, it is met by a value that does not exceed it."""

    figure: str
    value: float
    unit: str
    limit: float | None
    met: bool | None


class Report:
    """The figures of one run, in the order in which they were added."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Row] = []
        self._begun = Given.now()

    def add(self, figure: str, value: float, unit: str, limit: float | None = None) -> None:
        """Add a figure; ``limit`` is the largest value that is good enough, None if there is no such thing."""
        self.rows.append(Row(figure, value, unit, limit, None if limit is None else value <= limit))

    def write(self, file: Path | None) -> None:
        """Print the table and, if asked, write the rows as JSON."""
        table = Table("figure", "value", "unit", "limit", "met", title=self.title)
        for row in self.rows:
            limit = "" if row.limit is None else f"{row.limit:g}"
            table.add_row(
                row.figure, f"{row.value:.3f}", row.unit, limit, {None: "", True: "yes", False: "NO"}[row.met]
            )
        given = Given.now().share_since(self._begun)
        Console().print(table)
        print(f"the host gave this machine {given:.0%} of its processors' time meanwhile")
        if file is not None:
            file.write_text(
                json.dumps({"rows": [asdict(row) for row in self.rows], "processor_time_given": given}, indent=1) + "\n"
            )


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes. One that is terminated ends what it has started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    made.add_argument("--quick", action="store_true", help="under a minute; figures are rougher")
    return made


def run_ranks(world: int, target: Callable[..., None], *arguments: object) -> None:
    """Processes that are given their rank and these arguments, to their end.

    Raises:
        RuntimeError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=target, args=(rank, *arguments), daemon=True) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"a rank ended with {process.exitcode}")


def median(values: Sequence[float]) -> float:
    """The median; a benchmark that measured nothing must not look as if it had."""
    if not values:
        raise RuntimeError("nothing was measured")
    return statistics.median(values)

"""When an agent tells the controller what its workers' rings show: now and then, and at once what cannot wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.rings import watch
from ftrain_launcher.rings.watch import CommWatch

REPORT = NodeReport(node="node-0", generation=1, communicators=(), ranks=())


class Reader:
    """Looks that were made up; after the last one the watch is over."""

    def __init__(self, looks: str) -> None:
        self._looks, self.seen = iter(looks), 0

    def look(self, *_: object) -> bool:
        letter = next(self._looks, None)
        if letter is None:
            raise EOFError
        self.seen += 1
        return letter == "!"

    def report(self) -> NodeReport:
        return REPORT

    def close(self) -> None:
        pass


def told_after(
    looks: str, monkeypatch: pytest.MonkeyPatch, report_seconds: float = 1e9, running: str = "", generations: str = ""
) -> list[int]:
    """After which looks there was a report. ``!``: something stands still, ``.``: all goes on.

    ``running``: at each turn, ``-`` if no worker runs; all of the time by default. ``generations``: its number.
    """
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    monkeypatch.setattr(watch, "REPORT_SECONDS", report_seconds)
    turns, numbers = iter(running), iter(generations)
    workers = SimpleNamespace(generation=1)

    def run() -> list[tuple[int, int, int]]:
        workers.generation = int(next(numbers, "1"))
        return [] if next(turns, "*") == "-" else [(0, 0, 1)]

    workers.running = run
    told: list[int] = []
    reader = Reader(looks)
    one = CommWatch("node-0", Path(), cast(NodeWorkers, workers), lambda report: told.append(reader.seen))
    one._reader = reader  # type: ignore[assignment]
    with pytest.raises(EOFError):
        asyncio.run(one.run())
    return told


def test_nothing_is_told_at_once_while_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_after("......", monkeypatch) == []
    assert told_after("...", monkeypatch, report_seconds=0.0) == [1, 2, 3]


def test_what_stands_still_is_told_with_each_look_and_that_it_goes_on_again_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told_after("..!!...", monkeypatch) == [3, 4, 5]
    assert told_after("!.!....", monkeypatch) == [1, 2, 3, 4]


def test_that_all_have_ended_is_told_at_once_and_again_until_the_next_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not before the first ones run: a node's workers may be on their way."""
    turns = {"running": "--*--", "generations": "11111"}
    assert told_after("...", monkeypatch, **turns) == [2]
    assert told_after("...", monkeypatch, report_seconds=0.0, **turns) == [1, 2, 3]
    turns = {"running": "*---*", "generations": "11222"}
    assert told_after("...", monkeypatch, report_seconds=0.0, **turns) == [1, 2, 3]

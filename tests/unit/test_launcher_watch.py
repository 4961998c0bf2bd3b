"""When the agent's watch looks at its workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.rings import watch
from ftrain_launcher.rings.watch import AWAY_SECONDS, READ_SECONDS, CommWatch, Standstill


def test_who_has_stood_still_itself_gives_the_others_a_moment_to_wake_but_only_one() -> None:
    away, usual = READ_SECONDS + AWAY_SECONDS, READ_SECONDS + 0.9 * AWAY_SECONDS
    standstill = Standstill()
    assert [standstill.ends(pause) for pause in (usual, away, away, away, usual, usual, away)] == [
        False, True, False, True, False, False, True,
    ]  # fmt: skip


class Workers:
    """At each look those that still run."""

    generation = 1

    def __init__(self, looks: Iterable[int]) -> None:
        self._looks = iter(looks)

    def running(self) -> list[tuple[int, int, int]]:
        """As many as are left."""
        return [(rank, rank, os.getpid()) for rank in range(next(self._looks))]


def test_that_a_nodes_last_worker_has_ended_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else nobody would know that those of other nodes are the last ones."""
    monkeypatch.setattr(watch, "READ_SECONDS", 0.0)
    told: list[NodeReport] = []
    looking = CommWatch("a", tmp_path, cast(NodeWorkers, Workers([0, 2, 1, 0, 0, 0])), told.append)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(looking.run())
    assert [(report.generation, report.ranks, report.unrecorded) for report in told] == [(1, (), ())]

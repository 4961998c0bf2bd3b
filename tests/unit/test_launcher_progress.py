"""Of what the gate says with every heartbeat, little becomes an event."""

from __future__ import annotations

from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.events import Progress
from ftrain_launcher.job.progress import ProgressFilter
from ftrain_launcher.work import Durable
from ftrain_snapshot.status import DaemonStatus, Levels
from ftrain_snapshot.words import SnapshotId

MEMORY_ALONE = DurableTier(None)


def told(
    sealed: int | None, protected: int | None = None, generation: int = 1, pinned: SnapshotId | None = None
) -> DaemonStatus:
    return DaemonStatus(generation, True, Levels(sealed, protected), 0, 0, True, pinned=pinned)


def test_before_anything_is_sealed_there_is_nothing_to_tell() -> None:
    assert ProgressFilter().take(told(None), MEMORY_ALONE, 100.0) is None


def test_the_first_report_of_each_level_in_a_generation_counts_at_once() -> None:
    gate = ProgressFilter()
    assert gate.take(told(3), MEMORY_ALONE, 100.0) == Progress(generation=1, sealed=3, protected=None)
    assert gate.take(told(4), MEMORY_ALONE, 100.5) is None
    assert gate.take(told(4, 4), MEMORY_ALONE, 101.0) == Progress(generation=1, sealed=4, protected=4)
    assert gate.take(told(5, 5), MEMORY_ALONE, 101.5) is None
    assert gate.take(told(6, generation=2), MEMORY_ALONE, 102.0) == Progress(generation=2, sealed=6, protected=None)


def test_the_rest_is_for_the_record_now_and_then() -> None:
    gate = ProgressFilter()
    gate.take(told(3, 3), MEMORY_ALONE, 100.0)
    assert gate.take(told(9, 9), MEMORY_ALONE, 110.0) is None
    assert gate.take(told(9, 9), MEMORY_ALONE, 110.5) is not None
    assert gate.take(told(10, 10), MEMORY_ALONE, 111.0) is None


def test_what_is_pinned_for_storage_counts_until_it_is_being_written() -> None:
    gate, pinned = ProgressFilter(), SnapshotId(3, 1, 0)
    durable = DurableTier(Durable(url="/somewhere", every=1))
    gate.take(told(3, 3), durable, 100.0)
    progress = gate.take(told(3, 3, pinned=pinned), durable, 100.5)
    assert progress is not None
    assert progress.pinned == pinned
    durable.report(progress, 100.5)
    assert gate.take(told(4, 4, pinned=pinned), durable, 101.0) is None


def test_while_ranks_are_to_be_moved_each_protected_snapshot_counts() -> None:
    gate = ProgressFilter()
    gate.take(told(3, 3), MEMORY_ALONE, 100.0)
    assert gate.take(told(4, 4), MEMORY_ALONE, 100.5) is None
    assert gate.take(told(4, 4), MEMORY_ALONE, 101.0, moves=True) is not None
    assert gate.take(told(5, 4), MEMORY_ALONE, 101.5, moves=True) is None

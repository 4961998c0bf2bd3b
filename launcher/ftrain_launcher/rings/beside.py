"""Threads of a rank that go on beside its training: a monitor's, a checkpoint's.

While they do, the rank's ring moves, whatever its training does. A thread may be beside the training if it is not the
main one, and nobody else enters operations where it does. Whether the training waits for it the ring does not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ftrain_launcher.rings.view import FAILED, Record


def beside(places: Iterable[Sequence[Record]], main_thread: int) -> tuple[tuple[int, ...], int]:
    """The threads beside the training, and when another one last entered or left an operation, in ns.

    Args:
        places: the newest records of each communicator and channel.
        main_thread: if it has entered nothing, it is not known who trains, and nobody is beside.
    """
    used = [(records, {record.thread for record in records}) for records in places if records]
    threads = {thread for _, here in used for thread in here}
    if main_thread not in threads:
        return (), 0
    shared = {thread for _, here in used if len(here) > 1 for thread in here}
    found = threads - shared - {main_thread, 0}
    moved = (_moved_ns(record) for records, here in used if not here <= found for record in records)
    return tuple(sorted(found)), max(moved)


def _moved_ns(record: Record) -> int:
    return record.exit if record.exit < FAILED else record.begun_ns

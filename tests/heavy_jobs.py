"""Jobs with a heavy state (`programs/heavy.py`) and few snapshots, on emulated nodes and on hosts."""

from __future__ import annotations

from pathlib import Path

from hosts import Lab
from hosts.job import HostJob
from jobs import Job, holding

STEPS = 55
EVERY = 10
"""Steps between snapshots: of the steps 9, 19, 29 ..., if the gate is open then."""


class EmulatedJob(Job):
    """A heavy job on emulated nodes; its ranks wait before the steps ``hold``."""

    def __init__(self, folder: Path, *flags: str, hold: tuple[int, ...] = (), arguments: tuple[str, ...] = ()) -> None:
        super().__init__(folder, *_flags(flags), program="heavy.py", arguments=_arguments(hold, arguments))


class HeavyHostJob(HostJob):
    """The same on hosts."""

    def __init__(
        self, lab: Lab, folder: Path, *flags: str, hold: tuple[int, ...] = (), arguments: tuple[str, ...] = ()
    ) -> None:
        super().__init__(lab, folder, *_flags(flags), program="heavy.py", arguments=_arguments(hold, arguments))


def _flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    return "--snapshot-every", str(EVERY), *flags


def _arguments(hold: tuple[int, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return "--steps", str(STEPS), *holding(*hold), *more

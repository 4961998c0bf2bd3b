"""Which of a worker's streams the terminal shows, said as torchrun's ``--redirects``, ``--tee`` and filter say it.

All output goes to files whatever is chosen; a stream that is redirected, and not teed, goes nowhere else.
"""

from __future__ import annotations

import re

import msgspec

STDOUT, STDERR = 1, 2
_WHOLE = re.compile(r"[0-3]")
_PAIRS = re.compile(r"\d+:[0-3](,\d+:[0-3])*")


class Streams(msgspec.Struct, frozen=True):
    """Each either ``0`` to ``3`` (1: stdout, 2: stderr, 3: both) for all local ranks, or like ``0:1,1:2`` for some."""

    redirects: str = "0"
    tee: str = "0"
    lanes: tuple[int, ...] = ()
    """The local ranks that are shown at all; empty: every one."""

    @property
    def apart(self) -> bool:
        """Stdout and stderr have files of their own: somebody chose between them."""
        return (self.redirects, self.tee) != ("0", "0")

    def shows(self, lane: int, stream: int) -> bool:
        """Whether the terminal shows STDOUT or STDERR of a local rank."""
        if self.lanes and lane not in self.lanes:
            return False
        return bool(_chosen(self.tee, lane) & stream) or not _chosen(self.redirects, lane) & stream


def is_choice(text: str) -> bool:
    """Whether it can stand for redirects or tee."""
    return bool(_WHOLE.fullmatch(text) or _PAIRS.fullmatch(text))


def _chosen(text: str, lane: int) -> int:
    if ":" not in text:
        return int(text)
    return {int(at): int(value) for at, value in (pair.split(":") for pair in text.split(","))}.get(lane, 0)

"""What becomes of a worker's output beside its files, said as torchrun's ``--redirects``, ``--tee`` and filters say it.

All output goes to files whatever is chosen. The terminal shows it but for a stream that is redirected and not teed,
with the rank (or what TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE says) in front. Lines with certain words are copied again.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

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
    split: bool = False
    """The launcher's stdout and stderr lead to different places, and so do the workers'."""
    prefix: str = "[rank ${rank}] "
    """In front of each line; ``${rank}``, ``${local_rank}`` and ``${role_name}`` are replaced."""
    stdout_words: tuple[str, ...] = ()
    """Lines of stdout with one of them are copied into one file for all ranks."""
    stderr_words: tuple[str, ...] = ()

    @property
    def apart(self) -> bool:
        """Stdout and stderr have files of their own: somebody wants to tell them apart."""
        return self.split or (self.redirects, self.tee) != ("0", "0") or bool(self.stdout_words or self.stderr_words)

    def shows(self, lane: int, stream: int) -> bool:
        """Whether the terminal shows STDOUT or STDERR of a local rank."""
        if self.lanes and lane not in self.lanes:
            return False
        return bool(_chosen(self.tee, lane) & stream) or not _chosen(self.redirects, lane) & stream

    def words(self, stream: int) -> tuple[str, ...]:
        """What a line of STDOUT or STDERR is copied for; none: no line is."""
        return self.stderr_words if stream == STDERR else self.stdout_words

    def prefix_of(self, rank: int, lane: int, role: str) -> str:
        """What is in front of each line of one worker."""
        return string.Template(self.prefix).safe_substitute(rank=rank, local_rank=lane, role_name=role)


def filtered_path(log: Path, stream: int) -> Path:
    """Where lines with certain words of all ranks go, beside one rank's ``log``."""
    return log.with_name("filtered_stderr.log" if stream == STDERR else "filtered_stdout.log")


def is_choice(text: str) -> bool:
    """Whether it can stand for redirects or tee."""
    return bool(_WHOLE.fullmatch(text) or _PAIRS.fullmatch(text))


def _chosen(text: str, lane: int) -> int:
    if ":" not in text:
        return int(text)
    return {int(at): int(value) for at, value in (pair.split(":") for pair in text.split(","))}.get(lane, 0)

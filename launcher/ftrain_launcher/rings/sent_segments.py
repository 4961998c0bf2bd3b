"""What TCP of this host's network namespace has sent so far: the kernel's own counts (RFC 4022: tcpOutSegs,
tcpRetransSegs), which /proc/net/snmp tells."""

from __future__ import annotations

import os
from contextlib import suppress

from ftrain_launcher.detect.records import SentSegments

_FILE_BYTES_MAX = 16 << 10


class SegmentsWatch:
    """Reads them again and again."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):
            self._fd = os.open("/proc/self/net/snmp", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> SentSegments | None:
        """How many by now; None: this kernel does not tell."""
        try:
            return parse(os.pread(self._fd, _FILE_BYTES_MAX, 0).decode())
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def parse(snmp: str) -> SentSegments:
    """The counts, out of a line of names and one of numbers. Raises ValueError if these are not in there."""
    names, numbers = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    counts = dict(zip(names, numbers, strict=True))
    try:
        return SentSegments(int(counts["OutSegs"]), int(counts["RetransSegs"]))
    except KeyError as error:
        raise ValueError(f"no {error} among TCP's counts") from error

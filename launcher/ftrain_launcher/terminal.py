"""What ftrain says to the people who watch a job's terminal: lines on stderr, with its name in front."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def announce(text: str) -> None:
    """Say something, however many lines it has, in one write. A job goes on, and ends as it ends, if nobody reads."""
    try:
        sys.stderr.write("".join(f"ftrain: {line}\n" for line in text.splitlines()))
        sys.stderr.flush()
    except BrokenPipeError:
        nobody_reads(sys.stderr)
    except OSError:  # a full disk: another time
        pass


def nobody_reads(stream: TextIO) -> None:
    """The pipe behind stdout or stderr is closed: what is kept for it, and what is still to be said, goes nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

"""What ftrain says to the people who watch a job's terminal: lines on stderr, with its name in front."""

from __future__ import annotations

import sys


def announce(text: str) -> None:
    """Say something, however many lines it has, in one write."""
    sys.stderr.write("".join(f"ftrain: {line}\n" for line in text.splitlines()))
    sys.stderr.flush()

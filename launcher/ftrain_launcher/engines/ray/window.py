"""The newest lines of some output, for whoever reads them, each as far as it is."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

BYTES_MAX = 4 << 20


class Line(NamedTuple):
    """One line: ``stream`` is 1 or 2, ``text`` ends with a newline."""

    stream: int
    text: bytes

    @property
    def own_words(self) -> str:
        """What a launcher says itself, without its name; empty: the line is a worker's."""
        name = b"ftrain: "
        return self.text.removeprefix(name).decode(errors="replace").strip() if self.text.startswith(name) else ""


class Window:
    """A job's workers never wait for those who read: what is too old is dropped, and how much, is told."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._lines: deque[Line] = deque()
        self._bytes, self._bytes_max = 0, bytes_max
        self.end = 0
        """The number of the next line."""

    def add(self, line: Line) -> None:
        """One more."""
        self._lines.append(line)
        self._bytes += len(line.text)
        self.end += 1
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._lines.popleft().text)

    def after(self, position: int) -> list[Line]:
        """The lines from a number on; a line instead of those that were dropped."""
        first = self.end - len(self._lines)
        kept = list(islice(self._lines, max(0, position - first), None))
        if position < first:
            kept.insert(0, Line(2, f"ftrain: lines are missing here: {first - position}\n".encode()))
        return kept

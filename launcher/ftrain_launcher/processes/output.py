"""Worker output: files per rank and generation, and whole lines with the rank in front on the terminal.

Workers write straight to files, so a dead agent breaks no worker's output and nothing is lost with it. The agent
follows these files and copies whole lines to the terminal, and those with certain words to a file. A thread does that,
not the agent's event loop: a terminal that was stopped, or a full pipe, blocks its writer, and must not silence the
agent's heartbeats. The files are polled, since inotify would tell of every single write of a chatty worker, and 50 ms
is quick enough for people; so is a fifth of a second for the first line after a silence.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS, _QUIET_POLL_SECONDS = 0.05, 0.2
_POLL_GROWTH = 1.2
_READ_BYTES = 1 << 16
_TURN_BYTES_MAX = 1 << 20
"""Read from one file before the next one gets its turn."""
LINE_BYTES_MAX = 1 << 14
"""A longer line is broken: memory stays bounded."""
_ATOMIC_BYTES = 4096
"""PIPE_BUF: up to this a write to a pipe is never mixed with another agent's."""


def log_path(log_folder: Path, generation: int, rank: int) -> Path:
    """Where the output of one rank in one generation goes."""
    return log_folder / f"generation-{generation}" / f"rank-{rank}.log"


def size_of(path: Path) -> int:
    """How many bytes the file has; 0 too if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def last_lines(path: Path, count: int, bytes_max: int = 1 << 16, *, since: int = 0) -> list[str]:
    """The last lines of a file, from at most its last ``bytes_max`` bytes; none if there is no file.

    ``since``: only what was written after so many bytes.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - bytes_max))
            text = file.read(bytes_max).decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:] if count > 0 else []


class LineCutter:
    """Bytes in, whole prefixed lines out. A progress bar's rewritten line (``\\r``) counts as its last state."""

    def __init__(self, prefix: str, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._prefix = prefix.encode()
        self._line_bytes_max = line_bytes_max
        self._partial = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, each with its prefix and newline."""
        *whole, partial = (self._partial + data).split(b"\n")
        lines = [self._line(piece) for line in whole for piece in self._pieces(self._shown(line))]
        *full, self._partial = self._pieces(self._shown(partial))
        return lines + [self._line(piece) for piece in full]

    def flush(self) -> list[bytes]:
        """The line that was begun and never ended, if there is one."""
        partial, self._partial = self._partial, b""
        return [self._line(partial)] if partial else []

    def _pieces(self, line: bytes) -> list[bytes]:
        step = self._line_bytes_max
        return [line[start : start + step] for start in range(0, len(line), step)] or [b""]

    def _shown(self, line: bytes) -> bytes:
        """What a terminal would show of it; a ``\\r`` at its very end may be the first half of a newline."""
        cut = line.rfind(b"\r", 0, len(line) - 1)
        return line[cut + 1 :]

    def _line(self, line: bytes) -> bytes:
        return self._prefix + line.rstrip(b"\r") + b"\n"


class Terminal:
    """A descriptor that people, or a pipe, read; once nobody does any more, what is written to it goes nowhere."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def write(self, lines: list[bytes]) -> None:
        """Write lines, several at once where they fit into one atomic write."""
        batch = b""
        for line in lines:
            if batch and len(batch) + len(line) > _ATOMIC_BYTES:
                self._write_all(batch)
                batch = b""
            batch += line
        if batch:
            self._write_all(batch)

    def _write_all(self, data: bytes) -> None:
        while data and self._fd is not None:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody made the terminal non-blocking
                select.select([], [self._fd], [], 1.0)
            except OSError:  # nobody reads any more: the files still have it all
                self._fd = None


class Filtered:
    """A file for the lines, of all ranks, that have one of some words in them."""

    def __init__(self, path: Path, words: tuple[str, ...], prefix: str) -> None:
        self._path, self._skipped = path, len(prefix.encode())
        self._words = tuple(word.encode() for word in words)

    def write(self, lines: list[bytes]) -> None:
        """Append those that are wanted. The file is opened each time: it may be another agent's as well."""
        wanted = [line for line in lines if any(word in line[self._skipped :] for word in self._words)]
        if wanted:
            with contextlib.suppress(OSError), self._path.open("ab") as file:  # a full disk: the rank's own file tells
                file.write(b"".join(wanted))


@dataclass(eq=False)
class _Followed:
    cutter: LineCutter
    copies: tuple[Terminal | Filtered, ...]
    offset: int
    finishing: bool = False


class OutputTail:
    """Copies the lines of the files it follows. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._files: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        # daemon: a terminal that blocks for ever must not keep the agent from ending.
        self._thread = threading.Thread(target=self._run, name="worker output", daemon=True)
        self._thread.start()

    def follow(self, path: Path, prefix: str, *copies: Terminal | Filtered, since: int = 0) -> None:
        """Copy what is written to ``path``, which may not exist yet, after so many bytes."""
        with self._lock:
            self._files[path] = _Followed(LineCutter(prefix), copies, since)

    def finish(self, path: Path) -> None:
        """Its writer has ended: copy the rest, a begun last line included, and forget the file. Does not wait."""
        with self._lock:
            if path in self._files:
                self._files[path].finishing = True
        self._wake.set()

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Copy the rest of all files and end; False: the output blocks, so some lines are in the files only."""
        self._ending = True
        self._wake.set()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        poll_seconds = _POLL_SECONDS
        while True:
            self._wake.wait(poll_seconds)
            self._wake.clear()
            ending = self._ending
            with self._lock:
                turn = list(self._files.items())
            copied = [self._copy(path, followed, ending or followed.finishing) for path, followed in turn]
            poll_seconds = _POLL_SECONDS if any(copied) else min(poll_seconds * _POLL_GROWTH, _QUIET_POLL_SECONDS)
            if ending:
                return

    def _copy(self, path: Path, followed: _Followed, finishing: bool) -> bool:
        """Whether there was anything."""
        if not finishing and size_of(path) <= followed.offset:
            return False
        read = 0
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            # pread: a file that shrank gives nothing, and what is new is found by the offset alone.
            while data := os.pread(file.fileno(), _READ_BYTES, followed.offset):
                followed.offset += len(data)
                _write(followed, followed.cutter.feed(data))
                read += len(data)
                if read >= _TURN_BYTES_MAX and not finishing:
                    self._wake.set()
                    break
        if finishing:
            _write(followed, followed.cutter.flush())
            with self._lock:
                if self._files.get(path) is followed:
                    del self._files[path]
        return read > 0


def _write(followed: _Followed, lines: list[bytes]) -> None:
    if lines:
        for copy in followed.copies:
            copy.write(lines)

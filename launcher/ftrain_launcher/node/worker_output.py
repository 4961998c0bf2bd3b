"""What the workers of one node write: the files of each rank in each generation, and what is copied from them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.processes.error_file import SUFFIX, lines_of
from ftrain_launcher.processes.output import Filtered, OutputTail, Terminal, last_lines, log_path, size_of
from ftrain_launcher.processes.streams import STDERR, STDOUT, filtered_path

_LINES_REPORTED = 20


class WorkerOutput:
    """Where each rank writes; shows what is to be seen on the terminal. A file is named by generation and rank."""

    def __init__(self, job: JobRecord, errors_fd: int) -> None:
        """``errors_fd``: where the terminal's stderr is; its stdout is this process's."""
        self._folder = Path(job.config.work.log_folder)
        self._role, self._streams = job.config.work.role, job.config.work.streams
        self._tail = OutputTail()
        out = Terminal(1)
        self._begins: dict[Path, int] = {}
        """Bytes that an older job has left in these, which had the same log folder."""
        self._terminals = {STDOUT: out, STDERR: Terminal(errors_fd) if self._streams.apart else out}

    def close(self) -> None:
        """Copy what is left."""
        self._tail.close()

    def files(self, generation: int, rank: int) -> tuple[Path, Path]:
        """Of its stdout and of its stderr: one, unless somebody wants to tell them apart."""
        log = self._log(generation, rank)
        return log, log.with_suffix(".err") if self._streams.apart else log

    def error_file(self, generation: int, rank: int) -> Path:
        """Where torch's ``record`` puts the exception that ends the script."""
        return self._log(generation, rank).with_suffix(SUFFIX)

    def begin(self, generation: int, rank: int) -> None:
        """The rank is going to start: what is there is an older job's, that had this log folder."""
        self._begins.update((path, size_of(path)) for path in self.files(generation, rank))
        with contextlib.suppress(OSError):
            self.error_file(generation, rank).unlink()

    def show(self, generation: int, rank: int, lane: int, *, from_end: bool = False) -> None:
        """Copy to the terminal what is to be seen there, and to a file what has certain words.

        ``from_end``: only what comes from now on.
        """
        streams = self._streams
        prefix = streams.prefix_of(rank, lane, self._role)
        for path, stream in dict(zip(self.files(generation, rank), (STDOUT, STDERR), strict=True)).items():
            copies: list[Terminal | Filtered] = []
            if streams.shows(lane, stream):
                copies.append(self._terminals[stream])
            if words := streams.words(stream):
                copies.append(Filtered(filtered_path(path, stream), words, prefix))
            if copies:
                since = size_of(path) if from_end else self._begins.get(path, 0)
                self._tail.follow(path, prefix, *copies, since=since)

    def finish(self, generation: int, rank: int) -> None:
        """It writes no more."""
        for path in self.files(generation, rank):
            self._tail.finish(path)

    def keep_traceback(self, generation: int, rank: int, traceback: str) -> None:
        """Put it beside the rank's log."""
        with contextlib.suppress(OSError):
            self._log(generation, rank).with_suffix(".traceback").write_text(traceback)

    def last_lines(self, generation: int, rank: int) -> tuple[str, ...]:
        """Why it ended, in its own words."""
        _, err = self.files(generation, rank)
        told = lines_of(self.error_file(generation, rank), _LINES_REPORTED)
        return tuple(told or last_lines(err, _LINES_REPORTED, since=self._begins.get(err, 0)))

    def _log(self, generation: int, rank: int) -> Path:
        return log_path(self._folder, generation, rank)

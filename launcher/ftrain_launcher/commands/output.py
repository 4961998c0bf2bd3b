"""What becomes of workers' output, as torchrun's flags and variables say it: taken into `Streams`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ftrain_launcher.commands import files
from ftrain_launcher.commands.flags import Add
from ftrain_launcher.errors import UsageError
from ftrain_launcher.processes.streams import Streams, is_choice

_PREFIX = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"


def add_options(add: Add) -> None:
    """All of them."""
    add("--log-dir", type=Path, metavar="DIR", help="where worker output goes; default: the job's state folder")
    add("-r", "--redirects", default="0", metavar="STREAMS", help="not shown: 1 stdout, 2 stderr, 3 both, or 0:1,1:2")
    add("-t", "--tee", default="0", metavar="STREAMS", help="shown all the same")
    add("--local-ranks-filter", default="", metavar="0,1,...", help="local ranks that are shown; default: all")
    for stream in ("stdout", "stderr"):
        about = f"lines with one of these are copied to filtered_{stream}.log, of all ranks; ,, is a comma"
        add(f"--duplicate-{stream}-filters", default="", metavar="WORD,...", help=about)


def streams(chosen: argparse.Namespace) -> Streams:
    """What the terminal shows of the workers. Raises UsageError."""
    for flag, text in (("--redirects", chosen.redirects), ("--tee", chosen.tee)):
        if not is_choice(text):
            raise UsageError(f"{flag} {text}: give 0 to 3 for all local ranks, or like 0:1,1:2 for some")
    lanes = chosen.local_ranks_filter.split(",") if chosen.local_ranks_filter else []
    if not all(lane.strip().isdecimal() for lane in lanes):
        raise UsageError(f"--local-ranks-filter {chosen.local_ranks_filter}: give numbers like 0,1,2")
    return Streams(
        redirects=chosen.redirects,
        tee=chosen.tee,
        lanes=tuple(map(int, lanes)),
        split=_split(),
        prefix=os.environ.get(_PREFIX, Streams().prefix),
        stdout_words=_words(chosen.duplicate_stdout_filters),
        stderr_words=_words(chosen.duplicate_stderr_filters),
    )


def log_folder(chosen: argparse.Namespace) -> Path | None:
    """Where the user wants the files: made, if it is not there. Raises UsageError if it cannot be written."""
    folder: Path | None = chosen.log_dir
    if folder is None:
        return None
    return files.folder("--log-dir", folder, "output is kept in files, by default in the job's state folder")


def _words(text: str) -> tuple[str, ...]:
    """Separated by commas; two of them stand for one that belongs to a word."""
    words = (word.replace("\0", ",") for word in text.replace(",,", "\0").split(","))
    return tuple(word for word in words if word)


def _split() -> bool:
    """Whether our stdout and stderr lead to different places: a terminal is one, ``2>&1`` makes them one."""
    try:
        out, err = os.fstat(1), os.fstat(2)
    except OSError:  # one of them is closed
        return False
    return (out.st_dev, out.st_ino) != (err.st_dev, err.st_ino)

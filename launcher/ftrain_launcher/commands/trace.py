"""``ftrain trace``: the last steps of all ranks, in a file that Perfetto opens."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.commands.text import print_line
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder

if TYPE_CHECKING:
    from ftrain_launcher.trace.records import JobTrace

_STEPS_DEFAULT = 20
_MARGIN_SECONDS = 5.0


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Write the last steps of all ranks, and what they communicated, as a trace for ui.perfetto.dev."
    parser = add_command(commands, "trace", trace, about)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the file to write, or to replace")
    parser.add_argument(
        "--last-steps", metavar="N", type=int, default=_STEPS_DEFAULT, help=f"how many; default: {_STEPS_DEFAULT}"
    )
    add_job_options(parser)


def trace(chosen: argparse.Namespace) -> int:
    """Write the trace; 1: there is nothing to write."""
    from ftrain_launcher.trace.events import missing

    _check(chosen)
    found = _ask(JobFolder.find(chosen.job), chosen.last_steps)
    gaps = missing(found)
    for line in gaps:
        sys.stderr.write(f"ftrain: {line}\n")
    if not any(node.trace and node.trace.ranks for node in found.nodes):
        sys.stderr.write(f"ftrain: nothing is recorded of job {found.job!r}: {chosen.out} was not written\n")
        return 1
    report = write(found, chosen.out)
    report["missing"] = gaps
    if chosen.json:
        print_json(report)
    else:
        print_line(
            f"{report['file']}: {report['events']:,} events of {report['ranks']} ranks, clocks aligned to "
            f"{1e3 * report['clock_error_seconds']:.1f} ms; open it in ui.perfetto.dev"
        )
    return 0


def _check(chosen: argparse.Namespace) -> None:
    from ftrain_launcher.trace.records import STEPS_MAX

    if not 0 < chosen.last_steps <= STEPS_MAX:
        raise UsageError(f"--last-steps {chosen.last_steps}: give 1 to {STEPS_MAX}")
    path = chosen.out.resolve()
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):
        raise UsageError(f"--out {chosen.out}: give a file in a folder that is there")


def _ask(folder: JobFolder, steps: int) -> JobTrace:
    import msgspec

    from ftrain_launcher import query
    from ftrain_launcher.trace.records import JobTrace
    from ftrain_launcher.trace.tracing import TRACE_SECONDS_MAX

    if folder.result() is not None:
        raise UsageError(f"job {folder.record().name!r} has ended: its records are gone")
    answer = query.ask(folder, f"/api/trace?steps={steps}", None, TRACE_SECONDS_MAX + _MARGIN_SECONDS)
    return msgspec.convert(answer, JobTrace)


def write(found: JobTrace, path: Path) -> dict[str, Any]:
    """Put the trace in the place of what was there; what ``--json`` prints.

    Raises:
        UsageError: the file cannot be written.
    """
    import msgspec

    from ftrain_launcher.trace.events import events, origin_ns

    encode = msgspec.json.Encoder().encode
    error_seconds = max(node.error_ns for node in found.nodes) / 1e9
    about = {"job": found.job, "origin_unix_ns": origin_ns(found), "clock_error_seconds": error_seconds}
    target = path.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}")
    count = 0
    try:
        with part.open("wb") as file:
            file.write(b'{"displayTimeUnit":"ms","otherData":' + encode(about) + b',"traceEvents":[')
            for count, event in enumerate(events(found), start=1):
                file.write((b",\n" if count > 1 else b"\n") + encode(event))
            file.write(b"\n]}\n")
        part.replace(target)
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    ranks = sum(len(node.trace.ranks) for node in found.nodes if node.trace)
    return {"job": found.job, "file": str(path), "events": count, "ranks": ranks, "clock_error_seconds": error_seconds}

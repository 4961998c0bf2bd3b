"""The process that writes one node's part of a durable checkpoint: `python -m ftrain.durable.writer`.

It runs beside the training, at low priority and on one thread, from the moment that a due snapshot is protected and
its slot pinned. No worker waits for it, and killed at any point it leaves a folder that nobody lists.

Exit codes: 0 written (at position 0: the checkpoint exists), 2 bad arguments, 3 the snapshot cannot be read any more,
4 storage error, 5 other positions did not write their parts in time. What went wrong is one line on stderr.
"""

from __future__ import annotations

import argparse
import enum
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ftrain.durable.attempt import CLEANING, GRACE_SECONDS, Attempt, Job, OthersMissing
from ftrain.durable.source import NodeSource, Source
from ftrain.errors import FtrainError
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.priority import give_way
from ftrain_snapshot.storage import StorageError
from ftrain_snapshot.words import SnapshotId


class Exit(enum.IntEnum):
    """How a writer ends."""

    WRITTEN = 0
    UNREADABLE = 3
    STORAGE = 4
    OTHERS_MISSING = 5


def main(
    arguments: Sequence[str] | None = None, open_source: Callable[[argparse.Namespace], Source] | None = None
) -> int:
    """Write one part. ``open_source`` stands in for the node's memory and daemon."""
    given = _parser().parse_args(arguments)
    try:
        job = Job(
            url=given.url, snapshot=given.snapshot, position=given.position, positions=given.positions,
            lanes=given.lanes, name=given.job, keep=given.keep, timeout_seconds=given.timeout_seconds,
        )  # fmt: skip
    except ValueError as error:
        _say(str(error))
        return 2
    give_way()
    torch.set_num_threads(1)
    return run(job, lambda: (open_source or _open_node)(given))


def run(job: Job, open_source: Callable[[], Source]) -> int:
    """The exit code of one attempt; ends the process itself if time runs out."""
    attempt: Attempt | None = None
    watch = threading.Timer(job.timeout_seconds + GRACE_SECONDS, lambda: _out_of_time(job, attempt))
    watch.daemon = True
    watch.start()
    try:
        try:
            attempt = Attempt(job, open_source())
            attempt.write()
            if attempt.remark:
                _say(attempt.remark)
            return Exit.WRITTEN
        except StorageError as error:
            code, reason = Exit.STORAGE, str(error)
        except OthersMissing as error:
            code, reason = Exit.OTHERS_MISSING, str(error)
        except (SnapshotError, FtrainError, TimeoutError) as error:
            code, reason = Exit.UNREADABLE, f"{job.snapshot} cannot be read any more: {error}"
        _say(reason)
        if attempt is not None:
            attempt.give_up(reason)
        return code
    finally:
        watch.cancel()


def _open_node(given: argparse.Namespace) -> Source:
    client = DaemonClient(given.node_dir, role="worker")
    return NodeSource(given.node_dir, given.position, given.snapshot, client)


def _out_of_time(job: Job, attempt: Attempt | None) -> None:
    # A driver that hangs cannot be stopped from within: the process ends, and the claim with it.
    doing = attempt.doing if attempt is not None else "opening the storage"
    _say(f"not done within {job.timeout_seconds:g} s: {doing}")
    if doing == CLEANING:
        os._exit(Exit.WRITTEN)
    os._exit(Exit.OTHERS_MISSING if doing.startswith("waiting") else Exit.STORAGE)


def _say(line: str) -> None:
    print(f"ftrain durable: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ftrain.durable.writer", description="Write one node's part.")
    parser.add_argument("--node-dir", type=Path, required=True, help="the node's shared memory and sockets")
    parser.add_argument("--url", required=True, help="where checkpoints go: a folder, file://, s3://, gs://, ...")
    parser.add_argument("--snapshot", type=_snapshot, required=True, metavar="VERSION:GENERATION:SLOT")
    parser.add_argument("--position", type=int, required=True, help="this node's place in the job")
    parser.add_argument("--positions", type=int, required=True, help="nodes of the job")
    parser.add_argument("--lanes", type=int, required=True, help="ranks per node")
    parser.add_argument("--job", default="", help="the job's name, unlike any other's that writes there")
    parser.add_argument("--keep", type=int, default=2, help="complete checkpoints to keep")
    parser.add_argument("--timeout-seconds", type=float, default=3600.0)
    return parser


def _snapshot(text: str) -> SnapshotId:
    version, generation, slot = (int(part) for part in text.split(":"))
    return SnapshotId(version, generation, slot)


if __name__ == "__main__":
    sys.exit(main())

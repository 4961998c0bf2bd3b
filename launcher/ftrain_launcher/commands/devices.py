"""How many workers a node has, and which GPU each of them sees."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from ftrain_launcher.commands.checks import at_least
from ftrain_launcher.errors import NotBound, UsageError
from ftrain_launcher.processes import numa

_WORKERS_MAX = 1024
"""On a node: a slip of the hand is told, not tried."""


def workers(word: str) -> int:
    """A number of workers, or what this machine has."""
    word = word.strip()
    if word.lstrip("-").isdecimal():
        if (count := at_least("--nproc-per-node", int(word), 1)) > _WORKERS_MAX:
            raise UsageError(f"--nproc-per-node {word}: {_WORKERS_MAX} at most")
        return count
    gpus = _gpus()
    cpus = len(os.sched_getaffinity(0))
    if word == "gpu" and gpus == 0:
        raise UsageError("--nproc-per-node gpu: this machine has no NVIDIA GPU; use a number, or cpu")
    choices = {"gpu": gpus, "cpu": cpus, "auto": gpus or cpus}
    if word not in choices:
        raise UsageError(f"--nproc-per-node {word}: give a number, gpu, cpu or auto")
    return choices[word]


def _gpus() -> int:
    """NVIDIA's GPUs that a worker would see."""
    folder = Path("/proc/driver/nvidia/gpus")
    there = len(list(folder.iterdir())) if folder.exists() else 0
    return visible_gpus(there, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(there: int, visible: str | None) -> int:
    """How many are left by CUDA_VISIBLE_DEVICES: those that it names, up to the first that cannot be."""
    if visible is None:
        return there
    words = (word.strip() for word in visible.split(","))
    good = itertools.takewhile(
        lambda word: word and (not word.lstrip("-").isdecimal() or 0 <= int(word) < there), words
    )
    return min(there, len(list(good)))


def check_binding(mode: str, count: int) -> None:
    """Raises UsageError if this machine's workers cannot be bound as ``--numa-binding`` says; empty: it does not."""
    if not mode:
        return
    try:
        machine = numa.look(os.environ)
        for lane in range(count):
            numa.near(machine, mode, lane)
    except NotBound as error:
        raise UsageError(f"--numa-binding {mode}: {error}") from error


def virtual_local_rank(wanted: bool, count: int) -> bool:
    """Whether each worker gets a GPU of its own, if there are as many as workers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted and visible is not None and len(visible.split(",")) < count:
        raise UsageError(f"--virtual-local-rank: {count} workers, but CUDA_VISIBLE_DEVICES={visible}")
    return wanted

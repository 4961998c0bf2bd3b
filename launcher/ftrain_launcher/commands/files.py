"""What users name on the command line of ``ftrain run`` that lies on this machine: scripts, modules, folders.

Each is looked at before anything starts, and raises UsageError with one line. By ``os.path``: ``Path.exists`` raises
where a folder on the way may not be entered.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from ftrain_launcher.errors import UsageError

_ARENA_FREE_BYTES_MIN = 8 * 2**20


def script(word: str) -> str:
    """A script's path, absolute."""
    if os.path.isdir(word):
        raise UsageError(f"{word} is a folder, not a training script")
    if not os.path.exists(word):
        raise UsageError(f"no such script: {word} (working folder {os.getcwd()})")
    if not os.access(word, os.R_OK):
        raise UsageError(f"{word}: no right to read it")
    return os.path.abspath(word)


def module(name: str) -> str:
    """A module's name. Only its first part is looked for: to look further would import that."""
    first = name.partition(".")[0]
    sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        found = first in sys.modules or importlib.util.find_spec(first) is not None
    except (ImportError, ValueError):
        found = False
    finally:
        del sys.path[0]
    if not found:
        raise UsageError(f"no such module: {name} (working folder {os.getcwd()}, {sys.executable})")
    return name


def folder(what: str, path: Path, advice: str, mode: int = 0o777) -> Path:
    """A folder that can be written, absolute; made if it is not there. ``what``: what the user knows it as."""
    path = Path(os.path.abspath(path))
    first = next(here for here in (path, *path.parents) if os.path.exists(here))
    if not first.is_dir():
        raise UsageError(f"{what} {path}: {'' if first == path else f'{first} '}is no folder; {advice}")
    if not os.access(first, os.W_OK | os.X_OK):
        raise UsageError(f"{what} {path}: no right to write in {first}; {advice}")
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise UsageError(f"{what} {path}: it cannot be made: {error.strerror or error}; {advice}") from error
    return path


def arena(arena_dir: Path, name: str) -> Path:
    """The job's folder in shared memory; its size is checked again when the state's size is known."""
    arena_dir = Path(os.path.abspath(arena_dir))
    if not os.path.isdir(arena_dir):
        raise UsageError(f"--arena-dir {arena_dir}: no such folder")
    if not os.access(arena_dir, os.W_OK | os.X_OK):
        raise UsageError(f"--arena-dir {arena_dir}: no right to write there")
    free = shutil.disk_usage(arena_dir).free
    if free < _ARENA_FREE_BYTES_MIN:
        raise UsageError(
            f"too little shared memory in {arena_dir}: at least {_ARENA_FREE_BYTES_MIN >> 20} MiB are needed, "
            f"{free >> 20} MiB are free; make it larger, or give --arena-dir another tmpfs"
        )
    own = arena_dir / f"ftrain-{name}"
    if own.exists():
        if _in_use(own):
            raise UsageError(f"{own} is in use by a running job of this name: choose another --name")
        shutil.rmtree(own, ignore_errors=True)
    return own


def _in_use(arena: Path) -> bool:
    from ftrain_launcher.node.state import NodeFile

    known = [NodeFile(p.parent).read() for p in arena.glob("*/node.json")]
    return any(Path(f"/proc/{record.agent_pid}").exists() for record in known if record)

"""Look what is on durable storage, for a bounded time, in a process that is killed when the time is over."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from ftrain_launcher.from_agent import DurableSearch
from ftrain_launcher.job.durable import SEARCH_SECONDS_MAX
from ftrain_snapshot.storage import DurableId


def search(
    url: str, *, probe: bool = False, below: int | None = None, timeout_seconds: float = SEARCH_SECONDS_MAX
) -> DurableSearch:
    """The newest complete checkpoint there, ``below`` a step; ``probe``: see first whether one can be written."""
    command = [sys.executable, "-P", "-m", "ftrain_snapshot.search", url, *(["--probe"] if probe else [])]
    command += [] if below is None else ["--below", str(below)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return DurableSearch(failure=f"--durable {url}: no answer within {timeout_seconds:g} s")
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines()
        return DurableSearch(failure=lines[-1] if lines else f"--durable {url}: the search was killed")
    return DurableSearch(newest=msgspec.json.decode(done.stdout.splitlines()[-1], type=DurableId | None))

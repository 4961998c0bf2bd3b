"""This machine alone, for ``ftrain doctor`` without a job."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import msgspec

from ftrain.health.words import Answer, CheckNode, Failed, NodeFigures
from ftrain_launcher.health.judge import Checkup, judge
from ftrain_launcher.health.process import seconds_max

_NODE = "this machine"


def check(log_folder: str, arena_folder: str) -> dict[str, Any]:
    """``state``, ``reasons``, and ``figures`` unless it could not be measured."""
    found = _measure(CheckNode(log_folder, arena_folder))
    (verdict,) = judge(Checkup(nodes={_NODE: found}))
    return {
        "state": verdict.state.name.lower(),
        "reasons": list(verdict.reasons),
        "figures": None if isinstance(found, str) else msgspec.to_builtins(found),
    }


def _measure(task: CheckNode) -> NodeFigures | str:
    command = [sys.executable, "-P", "-m", "ftrain.health"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(task) + b"\n",
            capture_output=True,
            timeout=seconds_max(task),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds_max(task):g} s"
    if done.returncode < 0:  # nothing is said by who is killed for want of memory
        return f"its process was ended by {signal.Signals(-done.returncode).name}"
    if done.returncode != 0 or not done.stdout:
        said = done.stderr.decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"its process ended with exit code {done.returncode}"
    match msgspec.json.decode(done.stdout, type=Answer):
        case NodeFigures() as figures:
            return figures
        case Failed(reason):
            return reason
        case _:
            return "it answered something else"

"""This machine alone, for ``ftrain doctor`` without a job."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec

from ftrain.health.words import NODE_SECONDS_MAX, Answer, CheckNode, Failed, NodeFigures
from ftrain_launcher.health.judge import Checkup, judge

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
            command, input=msgspec.json.encode(task) + b"\n", capture_output=True, timeout=NODE_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {NODE_SECONDS_MAX:g} s"
    if done.returncode != 0:
        return done.stderr.decode(errors="replace").strip().splitlines()[-1]
    match msgspec.json.decode(done.stdout, type=Answer):
        case NodeFigures() as figures:
            return figures
        case Failed(reason):
            return reason
        case _:
            return "it answered something else"

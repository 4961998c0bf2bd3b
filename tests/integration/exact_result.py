"""Programs that start process groups of their own, and leave what became of them in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from processes import environment


def result_of(program: Path, folder: Path) -> Any:
    """What ``program`` says in its ``result.pt``, once it has ended well."""
    command = [sys.executable, "-W", "ignore", str(program), str(folder)]
    ended = subprocess.run(command, env=environment(), timeout=500, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return torch.load(folder / "result.pt")

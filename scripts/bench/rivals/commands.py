"""How each rival of scripts/bench/recovery.py is started, and how it is ended.

A rival's job is one command, which notes its steps in a folder as recovery_worker.py does, and ends with all that it
started when it is terminated. One whose packages are not installed is skipped, with a line.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from job import STOP_TIMEOUT_SECONDS

HERE = Path(__file__).resolve().parent
WORKER = HERE.parent / "recovery_worker.py"
RANKS = 4
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TORCHRUN_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo"}


class Rival(NamedTuple):
    """A way to train with faults that is not ours."""

    name: str
    command: list[str]
    """The folder follows."""
    packages: tuple[str, ...] = ()
    """That have to be installed beside ftrain's own."""
    environment: dict[str, str] = {}  # noqa: RUF012

    def missing(self) -> list[str]:
        """Which packages are not installed."""
        installed = {found.name.lower().replace("_", "-") for found in importlib.metadata.distributions()}
        return [package for package in self.packages if package not in installed]

    def start(self, folder: Path) -> Command:
        """The job, with its notes in the folder."""
        return Command([*self.command, str(folder)], folder / "log", self.environment)


class Command:
    """A process that is ended when the context is left, as SIGTERM ends it."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_SECONDS)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def tail(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-3000:]


TORCHRUN_RIVAL = Rival(
    "torchrun",
    [*TORCHRUN, "--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "100", str(WORKER), "torchrun"],
    environment=TORCHRUN_ENVIRONMENT,
)
RIVALS = (
    TORCHRUN_RIVAL,
    Rival("Ray Train", [sys.executable, str(HERE / "ray_train.py")], ("ray", "pandas", "pyarrow")),
    # In torchft 0.2.0 an error of gloo's ends every other group as well; the nightly builds have it mended.
    Rival("torchft", [sys.executable, str(HERE / "torchft_ddp.py")], ("torchft-nightly",)),
)

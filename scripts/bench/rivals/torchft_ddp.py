"""torchft as the rival of scripts/bench/recovery.py: four replica groups of one rank each, and a lighthouse.

    torchft_ddp.py FOLDER             the job: a lighthouse, and a torchrun for each group, which starts it again
    torchft_ddp.py group FOLDER       a group's rank; what to train is recovery_worker.py's

When a rank is lost the other groups drop the step under way, and go on without it; started again it takes its state
from one of them. Settings are those of torchft's README and its train_ddp.py, but for two, which are what survivors
wait for and are tightened to a second, more than the living need: ``join_timeout_ms``, for a group that has just died
(10 s there), and the process group's timeout, for those whose own peers in a ring live (5 s there).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torchft
from torchft.coordination import LighthouseServer

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from recovery_worker import STEPS, Training  # noqa: E402

GROUPS = 4
STOP_TIMEOUT_SECONDS = 20.0
OPERATION_TIMEOUT_SECONDS = 1
MANAGER_TIMEOUT_SECONDS = 30


class Group(torchft.ProcessGroupGloo):  # type: ignore[misc]
    """Notes when it was last torn down, as it is whenever other groups take part than before."""

    changed_at_ns = 0

    def abort(self, errored: bool = True) -> None:
        super().abort(errored)
        self.changed_at_ns = time.time_ns()


def train(folder: Path) -> None:
    """One rank: the same model and data, torchft's wrappers."""
    number = int(os.environ["REPLICA_GROUP_ID"])
    group = Group(timeout=timedelta(seconds=OPERATION_TIMEOUT_SECONDS))

    def state() -> dict[str, Any]:
        return {"model": training.model.state_dict(), "optimizer": optimizer.state_dict()}

    def load(saved: dict[str, Any]) -> None:
        training.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    manager = torchft.Manager(
        pg=group,
        min_replica_size=1,
        load_state_dict=load,
        state_dict=state,
        replica_id=f"group_{number}",
        timeout=timedelta(seconds=MANAGER_TIMEOUT_SECONDS),
        hostname="127.0.0.1",
    )
    training = Training(number, folder, wrap=lambda model: torchft.DistributedDataParallel(manager, model))
    optimizer = torchft.Optimizer(manager, training.optimizer)

    def note(*_: object) -> None:
        training.started_ns = max(training.started_ns, group.changed_at_ns)
        training.note(manager.current_step() - 1)

    training.optimizer.register_step_post_hook(note)  # called for steps that are committed only
    while manager.current_step() < STEPS:
        optimizer.zero_grad()  # asks who takes part
        training.backward(manager.current_step())
        optimizer.step()


def launch(folder: Path) -> None:
    """The whole job, until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=1, join_timeout_ms=1000, quorum_tick_ms=100)
    address = f"http://127.0.0.1:{lighthouse.address().rsplit(':', 1)[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["--max-restarts", "100", __file__, "group", str(folder)]
    environment = {**os.environ, "TORCHFT_LIGHTHOUSE": address}
    groups = [
        subprocess.Popen(command, env={**environment, "REPLICA_GROUP_ID": str(number)}) for number in range(GROUPS)
    ]
    try:
        while not ended.wait(0.5) and all(group.poll() is None for group in groups):
            pass
    finally:
        for group in groups:
            group.terminate()
        for group in groups:
            try:
                group.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                group.kill()
                group.wait(STOP_TIMEOUT_SECONDS)
        lighthouse.shutdown()


if __name__ == "__main__":
    train(Path(sys.argv[2])) if sys.argv[1] == "group" else launch(Path(sys.argv[1]))

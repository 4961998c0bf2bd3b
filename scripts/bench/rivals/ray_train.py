"""Ray Train as the rival of scripts/bench/recovery.py: ``ray_train.py FOLDER``, a cluster of its own on this machine.

Four workers, a checkpoint on tmpfs reported at each step, and as many failures as there are. Workers are asked for
their health ten times a second (Ray's default: each 2 s), so that what is measured is not that wait; they may take
longer to start than a minute, which on a busy machine they do and then start anew for ever; and no actor is started
beside each group to watch for pre-emptions. The cluster and its files are in FOLDER, Ray's home included, and it ends
with this process.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

RANKS = 4
CPUS = 8
"""That Ray counts: more than the workers take, for its own actors."""
OBJECT_STORE_BYTES = 80 << 20


def train(config: dict[str, Any]) -> None:
    """One rank: the same body, and rank 0's checkpoint of each step."""
    sys.path.insert(0, config["code"])
    from recovery_worker import STEPS, Training

    training, start = Training(ray.train.get_context().get_world_rank(), Path(config["folder"])), 0
    if found := ray.train.get_checkpoint():
        with found.as_directory() as folder:
            start = training.load(Path(folder) / "checkpoint.pt") + 1
    for step in range(start, STEPS):
        training.step(step)
        if training.rank != 0:
            ray.train.report({})
            continue
        with tempfile.TemporaryDirectory(dir=config["folder"]) as folder:
            training.save(step, Path(folder) / "checkpoint.pt")
            ray.train.report({}, checkpoint=Checkpoint.from_directory(folder))


def main(folder: Path) -> None:
    """The whole job, until SIGTERM."""
    home = folder / "home"
    home.mkdir()
    os.environ.update(
        {
            "HOME": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )
    ray.init(
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(folder), "code": str(Path(__file__).resolve().parents[1])},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(
            name="run",
            storage_path=str(folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

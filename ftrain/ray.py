"""Jobs on a Ray cluster, for programs that are Ray drivers (docs/ray.md).

    import ray, ftrain.ray

    ray.init()
    ftrain.ray.run("train.py", "--epochs", "3", nodes=4, workers_per_node=8)

The job is what `ftrain run --engine ray` makes of it: that command runs as a child of this program, and shows the
workers' output. What owns the job is an actor of its own on the cluster, named after it, which this module asks by
name: so a job can be looked at, waited for and ended by any driver, also when the one that started it is gone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftrain.errors import FtrainError

_NAMESPACE = "ftrain"
_ASK_SECONDS = 1.0
_EXIT_GONE = 6


class RayJobFailed(FtrainError):
    """A job did not end with exit code 0; its output says why, and `ftrain incidents` what happened before."""

    def __init__(self, name: str, exit_code: int) -> None:
        super().__init__(f"job {name} ended with exit code {exit_code}; its output says why")
        self.name, self.exit_code = name, exit_code


class RayJobNotFound(FtrainError):
    """No job of that name is in the cluster that this program is connected to."""


class RayJob:
    """One job on a Ray cluster."""

    def __init__(self, name: str, command: subprocess.Popen[bytes] | None = None) -> None:
        """Users call `start` or `attach`."""
        self.name = name
        self._command = command

    @classmethod
    def start(
        cls,
        script: str,
        *arguments: str,
        nodes: int | str,
        workers_per_node: int | str = 1,
        spares: int = 0,
        name: str | None = None,
        options: Sequence[str] = (),
    ) -> RayJob:
        """Start a job on the cluster that this program is connected to, or else on the one of $RAY_ADDRESS.

        Args:
            script: a path that is the same on all machines of the cluster, as with torchrun.
            arguments: the script's.
            nodes: how many, or "MIN:MAX" (docs/elastic.md).
            workers_per_node: how many, or "gpu".
            spares: nodes more than that, to take over from lost ones.
            name: of the job; one that runs already is attached to. Default: made from the script's.
            options: more of `ftrain run`, like ``("--durable", "s3://bucket/run")``.
        """
        import ray

        name = name or f"{Path(script).stem}-{uuid.uuid4().hex[:8]}"
        command = [sys.executable, "-m", "ftrain_launcher", "run", "--engine", "ray", "--name", name]
        command += ["--nnodes", str(nodes), "--nproc-per-node", str(workers_per_node), "--spares", str(spares)]
        if ray.is_initialized():
            command += ["--ray-address", ray.get_runtime_context().gcs_address]
        return cls(name, subprocess.Popen([*command, *options, "--", script, *arguments], stdin=subprocess.DEVNULL))

    @classmethod
    def attach(cls, name: str) -> RayJob:
        """A job that somebody else started, or this program before it was killed.

        Raises:
            RayJobNotFound: there is none; ten minutes after its end it is forgotten.
        """
        job = cls(name)
        job._supervisor()
        return job

    def status(self) -> dict[str, Any] | None:
        """What `ftrain status --json` says (docs/operations.md); None: the job has not begun, or is about to end.

        Raises:
            RayJobNotFound: it has ended.
        """
        import ray

        found: dict[str, Any] | None = ray.get(self._supervisor().status.remote())
        return found

    def wait(self, timeout_seconds: float | None = None) -> int:
        """The job's exit code, once it has ended.

        Raises:
            TimeoutError: it runs still.
        """
        if self._command is not None:
            try:
                return self._command.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"job {self.name} runs still, after {timeout_seconds} s") from None
        return self._wait_attached(timeout_seconds)

    def _wait_attached(self, timeout_seconds: float | None) -> int:
        import ray

        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        supervisor = self._supervisor()
        while deadline is None or time.monotonic() < deadline:
            try:
                _, _, ended = ray.get(supervisor.heard.remote(-1, _ASK_SECONDS))
            except ray.exceptions.RayActorError:
                return _EXIT_GONE
            if ended is not None:
                supervisor.farewell.remote()
                return int(ended[0])
        raise TimeoutError(f"job {self.name} runs still, after {timeout_seconds} s")

    def stop(self) -> None:
        """End the job, as Ctrl-C does. Returns at once; `wait` tells when it has ended.

        Raises:
            RayJobNotFound: it has not begun, or has ended.
        """
        self._supervisor().signal.remote(int(signal.SIGINT))

    def _supervisor(self) -> Any:
        import ray

        try:
            return ray.get_actor(self.name, namespace=_NAMESPACE)
        except ValueError as error:
            raise RayJobNotFound(f"no job named {self.name!r} is in this Ray cluster") from error


def run(
    script: str,
    *arguments: str,
    nodes: int | str,
    workers_per_node: int | str = 1,
    spares: int = 0,
    name: str | None = None,
    options: Sequence[str] = (),
) -> None:
    """Run a job to its end; the arguments are those of `RayJob.start`.

    Raises:
        RayJobFailed: it ended with another exit code than 0.
    """
    job = RayJob.start(
        script,
        *arguments,
        nodes=nodes,
        workers_per_node=workers_per_node,
        spares=spares,
        name=name,
        options=options,
    )
    code = job.wait()
    if code != 0:
        raise RayJobFailed(job.name, code)

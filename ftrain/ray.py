"""Jobs on a Ray cluster, for programs that are Ray drivers (docs/ray.md).

    import ray, ftrain.ray

    ray.init()
    ftrain.ray.run("train.py", "--epochs", "3", nodes=4, workers_per_node=8)

The job is what `ftrain run --engine ray` makes of it: that command runs as a child of this program, and shows the
workers' output. What owns the job is an actor of its own on the cluster, named after it, which this module asks by
name: so a job can be looked at, waited for and ended by any driver, also when the one that started it is gone.
"""

from __future__ import annotations

import os
import re
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
_ANSWER_SECONDS = 10.0
_EXIT_GONE = 6
_NODES = re.compile(r"[1-9]\d*(:[1-9]\d*)?")
_WORKERS = re.compile(r"[1-9]\d*|gpu")


class RayUnavailable(FtrainError):
    """Ray is not installed, or this program is connected to no cluster, or not as a driver on one of its machines."""


class RayJobInvalid(FtrainError):
    """What was given describes no job: which argument, and what to give."""


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
        self._listener = uuid.uuid4().hex
        self._exit_code: int | None = None

    @classmethod
    def start(
        cls,
        script: str | os.PathLike[str],
        *arguments: str | os.PathLike[str],
        nodes: int | str,
        workers_per_node: int | str = 1,
        spares: int = 0,
        name: str | None = None,
        options: Sequence[str] = (),
    ) -> RayJob:
        """Start a job on the cluster that this program is connected to, or else on the one of $RAY_ADDRESS.

        What can be seen of an argument here is refused at once; of what only the command can tell (an option that is
        none, a script that is not there) it says one line, and `wait` is the exit code 2.

        Args:
            script: a path that is the same on all machines of the cluster, as with torchrun.
            arguments: the script's.
            nodes: how many, or "MIN:MAX" (docs/elastic.md).
            workers_per_node: how many, or "gpu".
            spares: nodes more than that, to take over from lost ones.
            name: of the job; one that runs already is attached to. Default: made from the script's.
            options: more of `ftrain run`, like ``("--durable", "s3://bucket/run")``.

        Raises:
            RayJobInvalid: an argument cannot be meant so.
            RayUnavailable: Ray is not installed, or this is a client of a cluster (``ray://``) and not on it.
        """
        script = _script(script)
        _must_match(f"nodes={nodes!r}", nodes, _NODES, 'give a number from 1 on, or "MIN:MAX"')
        _must_match(
            f"workers_per_node={workers_per_node!r}", workers_per_node, _WORKERS, 'give a number from 1 on, or "gpu"'
        )
        if isinstance(spares, bool) or not isinstance(spares, int) or spares < 0:
            raise RayJobInvalid(f"spares={spares!r}: give a number from 0 on")
        more, words = _words("options", options), _words("arguments", arguments)
        if name is not None and (not isinstance(name, str) or not name):
            raise RayJobInvalid(f"name={name!r}: give some text, or leave it out")
        name = name or f"{Path(script).stem}-{uuid.uuid4().hex[:8]}"
        command = [sys.executable, "-m", "ftrain_launcher", "run", "--engine", "ray", "--name", name]
        command += ["--nnodes", str(nodes), "--nproc-per-node", str(workers_per_node), "--spares", str(spares)]
        ray = _ray()
        if ray.is_initialized():
            command += ["--ray-address", ray.get_runtime_context().gcs_address]
        return cls(name, subprocess.Popen([*command, *more, "--", script, *words], stdin=subprocess.DEVNULL))

    @classmethod
    def attach(cls, name: str) -> RayJob:
        """A job that somebody else started, or this program before it was killed.

        Raises:
            RayJobNotFound: there is none; it is forgotten once all who waited have heard its end, or ten minutes later.
            RayUnavailable: this program is connected to no cluster.
        """
        job = cls(name)
        job._supervisor()
        return job

    def status(self) -> dict[str, Any] | None:
        """What `ftrain status --json` says (docs/operations.md); None: the job has not begun, or is about to end.

        Raises:
            RayJobNotFound: it has ended, or is not in the cluster yet.
            RayUnavailable: this program is connected to no cluster.
        """
        ray, supervisor = _ray(), self._supervisor()
        try:
            found: dict[str, Any] | None = ray.get(supervisor.status.remote(), timeout=_ANSWER_SECONDS)
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None
        except ray.exceptions.RayActorError as error:
            raise self._not_found() from error
        return found

    def wait(self, timeout_seconds: float | None = None) -> int:
        """The job's exit code, once it has ended; 6: what owned it is lost, and the job with it.

        Raises:
            TimeoutError: it runs still.
            RayJobNotFound: it was attached to, and has ended since without a word.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if self._exit_code is None and self._command is not None:
            try:
                code = self._command.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                raise self._runs_still(timeout_seconds) from None
            if code >= 0:
                self._exit_code = code
            self._command = None  # Killed, it tells nothing of the job, which goes on without it.
        while self._exit_code is None:
            self._exit_code = self._ask_for_end()
            if self._exit_code is None and deadline is not None and time.monotonic() >= deadline:
                raise self._runs_still(timeout_seconds)
        return self._exit_code

    def _ask_for_end(self) -> int | None:
        ray, supervisor = _ray(), self._supervisor()
        try:
            _, _, ended = ray.get(supervisor.heard.remote(-1, _ASK_SECONDS, self._listener), timeout=_ANSWER_SECONDS)
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None  # It is slow, or the line to it is down: if it died, another error tells that.
        except ray.exceptions.RayActorError:
            return _EXIT_GONE
        if ended is None:
            return None
        supervisor.farewell.remote(self._listener)
        return int(ended[0])

    def stop(self) -> None:
        """End the job, as Ctrl-C does. Returns at once; `wait` tells when it has ended.

        Raises:
            RayJobNotFound: it has not begun, or has ended.
            RayUnavailable: this program is connected to no cluster.
        """
        self._supervisor().signal.remote(int(signal.SIGINT))

    def _supervisor(self) -> Any:
        ray = _ray()
        if not ray.is_initialized():  # Asked for an actor, Ray would start a cluster of its own.
            raise RayUnavailable(f"job {self.name}: this program is connected to no Ray cluster: call ray.init first")
        try:
            return ray.get_actor(self.name, namespace=_NAMESPACE)
        except ValueError as error:
            raise self._not_found() from error

    def _not_found(self) -> RayJobNotFound:
        return RayJobNotFound(f"no job named {self.name!r} is in this Ray cluster")

    def _runs_still(self, timeout_seconds: float | None) -> TimeoutError:
        return TimeoutError(f"job {self.name} runs still, after {timeout_seconds} s")


def _ray() -> Any:
    """Ray, where this program may be a driver."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise RayUnavailable("Ray is not installed here: pip install 'ftrain[ray]'") from error
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        raise RayUnavailable("this program is a client (ray://): it must run on a machine of the cluster, as a driver")
    return ray


def _script(script: str | os.PathLike[str]) -> str:
    """As it was given: options say whether it is a path (which the command looks for), a module or a program."""
    if not isinstance(script, str | os.PathLike) or not os.fspath(script):
        raise RayJobInvalid(f"script={script!r}: give the path of a script")
    return os.fspath(script)


def _must_match(what: str, given: int | str, form: re.Pattern[str], instead: str) -> None:
    if isinstance(given, bool) or not isinstance(given, int | str) or not form.fullmatch(str(given)):
        raise RayJobInvalid(f"{what}: {instead}")


def _words(what: str, given: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Words of a command line; a text would be taken for its letters."""
    if isinstance(given, str) or not all(isinstance(word, str | os.PathLike) for word in given):
        raise RayJobInvalid(f'{what}={given!r}: give a sequence of texts, like ("--parity", "1")')
    return [os.fspath(word) for word in given]


def run(
    script: str | os.PathLike[str],
    *arguments: str | os.PathLike[str],
    nodes: int | str,
    workers_per_node: int | str = 1,
    spares: int = 0,
    name: str | None = None,
    options: Sequence[str] = (),
) -> None:
    """Run a job to its end; the arguments are those of `RayJob.start`, and what it raises.

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

"""`ftrain run --engine ray`: find the cluster, start a job there or attach to it, show what it says, end as it does.

The driver owns nothing: if it is killed, the job goes on, and the same command attaches to it.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import time
import uuid
from typing import Any

import msgspec

from ftrain_launcher.engines.ray.order import NAMESPACE, Order
from ftrain_launcher.engines.ray.placing import HEAD_RESOURCE, bundles, has_room, machines
from ftrain_launcher.engines.ray.silence import Silence
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import Endpoint, JobFolder, JobRecord, Result
from ftrain_launcher.terminal import announce

EXIT_CUT_OFF = 6
"""As of a host that cannot reach its controller any more."""
_CONNECT_SECONDS = 5.0
_PORT_MAX = 65535
_HTTP2_SETTINGS, _HTTP2_HEADER_BYTES = b"\x04", 9
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + b"\0\0\0\0\0"
"""What a client says first, with settings that change nothing (RFC 9113, 3.4)."""
_WAIT_SECONDS = 0.5
_AGAIN_SECONDS = 0.5
"""Until an actor that cannot be reached is asked again."""
_START_SECONDS = 20.0
"""What Ray takes to start a process is told from here on; a busy machine needs a minute."""
_BEGIN_SECONDS = 600.0
"""For the controller to begin; what keeps it longer than seconds ends it."""
_DRIVERS_MAX = 16
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_SIGNALS_TO_GO = 3
"""One ends the job, one more kills it; another lets go of a job that does not answer."""
_GONE = "the actor that owns the job is gone, and the job with it: its machine or Ray ended it"
_LOST = (
    "the actor that owns the job and the head of the Ray cluster do not answer: their machine is lost, and the job "
    "with it; or this one is cut off from them"
)


def connect(address: str | None) -> dict[str, Any]:
    """Connect this process to a cluster; its machines, as `placing.machines` has them.

    Raises:
        UsageError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--engine ray: Ray is not installed here: pip install 'ftrain[ray]'") from error
    word = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in word:
        raise UsageError(f"--ray-address {word}: give HOST:PORT of the cluster's head, on one of its machines")
    if word != "auto":
        _must_answer(word)
    try:
        ray.init(address=word, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
        return machines(ray.nodes())  # type: ignore[no-untyped-call]
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if word == "auto" and isinstance(error, ConnectionError):
            raise UsageError("--engine ray: no Ray cluster runs here; --ray-address HOST:PORT names another") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"--ray-address {word}: {reason}") from error


def _must_answer(word: str) -> None:
    """Ray itself would ask for minutes, and say much: a server of gRPC answers the first words of HTTP/2 at once."""
    host, colon, port = word.rpartition(":")
    if not colon or not port.isdecimal() or not host or int(port) > _PORT_MAX:
        raise UsageError(f"--ray-address {word}: give HOST:PORT, or auto")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            line.sendall(_HTTP2_PREFACE)
            answer = line.recv(_HTTP2_HEADER_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--ray-address {word}: nothing answers there ({reason}); is the Ray cluster up?") from error
    if answer[3:4] != _HTTP2_SETTINGS:
        raise UsageError(f"--ray-address {word}: what answers there is no Ray cluster")


def _answers(head: str) -> bool:
    """Whether a cluster's head does."""
    try:
        _must_answer(head)
    except UsageError:
        return False
    return True


def run(order: Order, cluster: dict[str, Any]) -> Result:
    """Run a job to its end, or watch one of that name that runs already.

    Raises:
        UsageError: the one that runs is another job, or ftrain is not to be had on the cluster.
    """
    import ray

    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: signals.put(number))
    folder: JobFolder | None = None
    try:
        supervisor = _meet(order, cluster, signals)
        if supervisor is None:
            return Result(128 + signals.get(), "left before the job began")
        folder, listener = _folder(supervisor, signals), uuid.uuid4().hex
        result = _follow(supervisor, listener, signals)
        supervisor.farewell.remote(listener)
    except ray.exceptions.RayActorError as error:
        if "ModuleNotFoundError" in str(error):
            raise UsageError("--engine ray: ftrain is not installed on the machines of the Ray cluster") from error
        announce(f"error: {_GONE}")
        result = Result(EXIT_CUT_OFF, _GONE)
    if folder is not None:
        folder.write_result(result)
    return result


def _meet(order: Order, cluster: dict[str, Any], signals: queue.SimpleQueue[int]) -> Any:
    """The actor that has this job, which is made unless it is there; None: the user does not want to wait.

    Raises:
        UsageError: it has another job.
    """
    import ray

    while True:
        supervisor, made_here = _supervisor(order, cluster)
        try:
            answer = _answer(supervisor, order, signals)
        except ray.exceptions.RayActorError:
            if made_here:
                raise
            answer = True, None
        if answer is None:
            if made_here:
                ray.kill(supervisor)
            return None
        is_over, difference = answer
        if is_over:  # It goes when all that waited for its job's end have heard of it.
            time.sleep(_AGAIN_SECONDS)
            if not signals.empty():
                return None
            continue
        if difference is not None:
            raise UsageError(
                f"a job named {order.name!r} is in this cluster, and {difference} differs: choose another --name"
            )
        if not made_here:
            announce(f"job {order.name} is there already: attached to it")
        return supervisor


def _supervisor(order: Order, cluster: dict[str, Any]) -> tuple[Any, bool]:
    """The actor of the job, which is made unless it is there; was it?"""
    import ray

    from ftrain_launcher.engines.ray.supervisor import Supervisor

    try:
        return ray.get_actor(order.name, namespace=NAMESPACE), False
    except ValueError:
        if (room := has_room(cluster.values(), order.share)) < (wanted := bundles(order)):
            share = ", ".join(f"{amount:g} {name}" for name, amount in order.share.items())
            announce(f"waiting for the Ray cluster: {wanted} machines with {share} are needed, {room} are there")
        on_head = any(HEAD_RESOURCE in resources for resources in cluster.values())
        made: Any = (
            ray.remote(Supervisor)
            .options(
                name=order.name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources={HEAD_RESOURCE: 0.001} if on_head else {},
                max_concurrency=_DRIVERS_MAX,
            )
            .remote(msgspec.json.encode(order))
        )
        return made, True


def _answer(supervisor: Any, order: Order, signals: queue.SimpleQueue[int]) -> tuple[bool, str | None] | None:
    """What the actor says of this order, once Ray has started it; None: the user does not want to wait."""
    import ray

    answer, tell_at = supervisor.met.remote(msgspec.json.encode(order)), time.monotonic() + _START_SECONDS
    while not ray.wait([answer], timeout=_WAIT_SECONDS)[0]:
        if not signals.empty():
            return None
        if time.monotonic() >= tell_at:
            announce("waiting for the actor that owns the job: Ray starts it on the head's machine")
            tell_at = float("inf")
    met: tuple[bool, str | None] = ray.get(answer)
    return met


def _folder(supervisor: Any, signals: queue.SimpleQueue[int]) -> JobFolder | None:
    """Where operators' commands find the job on this machine; None: it has ended before it began, or is to end."""
    import ray

    answer = supervisor.joined.remote(_BEGIN_SECONDS)
    while not ray.wait([answer], timeout=_WAIT_SECONDS)[0]:
        if not signals.empty():
            return None
    found = ray.get(answer)
    if found is None:
        return None
    encoded, secret, host, port = found
    record = msgspec.structs.replace(
        msgspec.json.decode(encoded, type=JobRecord), launcher_pid=os.getpid(), hostname=socket.gethostname()
    )
    folder = JobFolder.place(record)
    folder.join(record, secret, Endpoint(host, port, None))
    return folder


def _follow(supervisor: Any, listener: str, signals: queue.SimpleQueue[int]) -> Result:
    """Show what the job says until it has ended; hand on what the user sends meanwhile."""
    import ray

    position, sent, silence = 0, 0, Silence(time.monotonic())
    head = ray.get_runtime_context().gcs_address
    answer = supervisor.heard.remote(position, _WAIT_SECONDS, listener)
    while True:
        while not signals.empty():
            number, sent = signals.get(), sent + 1
            if sent >= _SIGNALS_TO_GO:
                return Result(128 + number, "the job was left alone")
            supervisor.signal.remote(number)
        lines, ended = [], None
        if ray.wait([answer], timeout=_WAIT_SECONDS)[0]:
            try:
                lines, position, ended = ray.get(answer)
                if silence.answered(time.monotonic()):
                    announce("the actor that owns the job answers again")
            except ray.exceptions.ActorUnavailableError:  # If it died, that is told by another error.
                time.sleep(_AGAIN_SECONDS)
            answer = supervisor.heard.remote(position, _WAIT_SECONDS, listener)
        if silence.begins(time.monotonic()):
            announce("warning: the actor that owns the job does not answer: its machine, or the way to it, may be lost")
        if silence.told and silence.is_lost(time.monotonic(), _answers(head)):
            announce(f"error: {_LOST}")
            return Result(EXIT_CUT_OFF, _LOST)
        for stream, text in lines:
            out = (sys.stdout if stream == 1 else sys.stderr).buffer
            out.write(text)
            out.flush()
        if ended is not None:
            return Result(*ended)

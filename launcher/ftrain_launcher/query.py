"""What operators' commands ask a job's controller, over HTTP with the job's token.

The controller may be on its way back: a question waits for it a little, and a status can then be answered from
the last one that was written down. Process ids are checked before they are shown: an answer is never wrong
about a process of this machine.
"""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from ftrain_launcher.errors import ControllerAway, JobHasEnded, RecordDamaged, UsageError
from ftrain_launcher.jobs import Endpoint, JobFolder

_ANSWER_SECONDS = 0.5
_RETRY_SECONDS = 0.03
_NOT_OURS = 401
_STANDS_BY = 503
"""What a candidate answers that is not the controller."""


def ask(folder: JobFolder, path: str, body: dict[str, Any] | None = None, wait_seconds: float = _ANSWER_SECONDS) -> Any:
    """GET (or POST, with a body) a path of the controller and return its JSON.

    Raises:
        ControllerAway: nobody answered within ``wait_seconds``; JobHasEnded: nor ever will.
        UsageError: the controller refused what was asked.
    """
    _refuse_ended(folder)  # its address may be another's by now, who is to learn no token
    deadline = time.monotonic() + wait_seconds
    turns, candidates = 0, folder.record().config.candidates
    while True:
        endpoint = folder.endpoint()
        if turns and candidates:  # Another one may lead by now.
            from ftrain_launcher import leadership  # takes two thirds of a command's processor time to import

            endpoint = leadership.endpoints(candidates)[(turns - 1) % len(candidates)]
        turns += 1
        try:
            if endpoint is not None:
                return _ask_once(endpoint, folder.token(), path, body, max(0.05, deadline - time.monotonic()))
        except (OSError, http.client.HTTPException):
            _refuse_ended(folder)
        if time.monotonic() >= deadline:
            name = folder.record().name
            if not folder.is_running():
                raise JobHasEnded(f"job {name!r} has ended: its launcher is gone")
            raise ControllerAway(f"the controller of job {name!r} does not answer; its launcher restarts it: try again")
        time.sleep(_RETRY_SECONDS)  # nobody tells when a port is open again


def _refuse_ended(folder: JobFolder) -> None:
    if (over := folder.result()) is not None:
        raise JobHasEnded(f"job {folder.record().name!r} has ended: {over.message}") from None


def _ask_once(endpoint: Endpoint, token: str, path: str, body: dict[str, Any] | None, timeout_seconds: float) -> Any:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_seconds)
    try:
        connection.request(
            "GET" if body is None else "POST",
            path,
            body=None if body is None else msgspec.json.encode(body),
            headers={"Authorization": f"Bearer {token}"},
        )
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    if response.status == _STANDS_BY:
        raise http.client.HTTPException("this candidate stands by")
    if response.status == _NOT_OURS:
        raise UsageError(
            f"the controller at {endpoint.host}:{endpoint.port} does not take this job's token: "
            "the secret in the job's folder was changed, or that is another job's controller"
        )
    if response.status != 200:
        raise UsageError(data.decode(errors="replace") or f"the controller answered {response.status}")
    return msgspec.json.decode(data)


def status(folder: JobFolder) -> dict[str, Any]:
    """The job's status: the controller's, else the last one written down.

    Raises:
        ControllerAway: it does not answer and nothing is written down yet.
    """
    result = folder.result()
    try:
        if result is not None:
            raise ControllerAway("the job has ended")
        answer: dict[str, Any] = ask(folder, "/api/status")
    except ControllerAway:
        last = folder.last_status()
        if last is None:
            raise
        try:
            answer = msgspec.json.decode(last)
        except msgspec.DecodeError as error:
            raise RecordDamaged(folder.path / "status.json", str(error)) from error
        if result is not None:
            answer["state"] = "finished" if result.exit_code == 0 else "failed"
            answer["message"] = result.message
    return only_live_pids(answer, controller_is_here=folder.has_controller())


def only_live_pids(answer: dict[str, Any], *, controller_is_here: bool = True) -> dict[str, Any]:
    """Take out the pids of this host's processes that have ended since; of other hosts' nothing is known here."""
    if controller_is_here:
        answer["controller"]["pid"] = _alive(answer["controller"]["pid"])
    for node in answer["nodes"]:
        if node.get("hostname", "") not in ("", socket.gethostname()):
            continue
        node["agent_pid"], node["daemon_pid"] = _alive(node["agent_pid"]), _alive(node["daemon_pid"])
        for rank in node["ranks"]:
            if rank["pid"] is not None and _alive(rank["pid"]) is None:
                rank["pid"], rank["state"] = None, "exited"
    return answer


def _alive(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None
    return None if state in "ZX" else pid

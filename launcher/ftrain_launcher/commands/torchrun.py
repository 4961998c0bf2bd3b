"""torchrun's flags, as those of torch 2.13 mean them, for scripts and habits that come from there.

Each is either taken for what it means here, or refused in one line that says what to use (docs/torchrun.md). Its
variables ``PET_NAME`` are read as well, names may be written with underscores, and shortened where that is clear.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from typing import Literal

from ftrain_launcher.commands.flags import adder
from ftrain_launcher.errors import UsageError
from ftrain_launcher.processes import numa

_MASTER_PORT, _RDZV_PORT = 29500, 29400
_BACKENDS = ("static", "c10d")
_CONF_WITHOUT_EFFECT = ("close_timeout", "heartbeat_timeout", "is_host", "read_timeout", "use_libuv", "store_type")
_CONF_NUMBERS = ("join_timeout", "timeout", "last_call_timeout", "keep_alive_interval", "keep_alive_max_attempt")
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
_MORE_SIGNALS = ("SIGUSR1", "SIGUSR2")
_SHUTDOWN_SECONDS = 5.0
_NAME_LENGTH_MAX, _DIGEST_LENGTH = 48, 8
_REFUSED = {
    "--event-log-handler": ("null", "read `ftrain incidents --json` instead"),
    "--logs-specs": ("default", "choose with --log-dir, --redirects, --tee and --local-ranks-filter"),
}
"""What has no meaning here: the value that asks for nothing, and what to use."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of torchrun's that `ftrain run` does not have by itself."""
    group = parser.add_argument_group("as torchrun has them")
    add = adder(group)  # type: ignore[arg-type]
    add("--standalone", action="store_true", help="one node, whatever --rdzv-* say")
    add("--rdzv-backend", default="static", metavar="NAME", help="static or c10d: the controller is either")
    add("--rdzv-endpoint", default="", metavar="HOST:PORT", help="same as --controller")
    add("--rdzv-id", default="", metavar="NAME", help="same as --name")
    add("--rdzv-conf", default="", metavar="KEY=VALUE,...", help="timeouts; see docs/torchrun.md")
    add("--master-addr", default="", metavar="HOST", help="host of the controller, for jobs of several hosts")
    about = f"its port, by default {_MASTER_PORT}; of a job of one node: MASTER_PORT"
    add("--master-port", type=int, metavar="PORT", help=about)
    add("--local-addr", default="", metavar="HOST", help="the address of this host that others reach it at")
    add("--monitor-interval", type=float, metavar="S", help="no effect: ends of workers are told, not looked for")
    methods = ["spawn", "fork", "forkserver"]
    add("--start-method", choices=methods, help="no effect, as in torchrun for scripts; see --no-zygote")
    add("--role", default="default", help="what ROLE_NAME is to say")
    add("--no-python", action="store_true", help="SCRIPT is a program, to be executed")
    add("--run-path", action="store_true", help="SCRIPT is run in this interpreter, which it always is")
    about = "comma-separated: SIGTERM, SIGINT, SIGHUP and SIGQUIT always are; SIGUSR1 and SIGUSR2 can be"
    add("--signals-to-handle", default="", metavar="NAMES", help=about)
    about = f"how long workers may take to end when the job does; default {_SHUTDOWN_SECONDS:g}"
    add("--shutdown-timeout", type=float, metavar="S", help=about)
    add("--virtual-local-rank", action="store_true", help="each worker sees its own GPU only, and LOCAL_RANK is 0")
    about = "bind each worker to the processors near the GPU of its local rank"
    add("--numa-binding", choices=numa.MODES, default="", help=about)
    for flag, (_, instead) in _REFUSED.items():
        add(flag, default="", metavar="NAME", help=f"refused: {instead}")


def settle(chosen: argparse.Namespace) -> None:
    """Turn them into `ftrain run`'s own. Raises UsageError for what cannot be had."""
    _refuse(chosen)
    _settle_conf(chosen)
    if chosen.standalone:
        chosen.nnodes, chosen.master_port, chosen.rdzv_id = "1", None, ""
    elif chosen.rdzv_backend not in _BACKENDS:
        raise UsageError(f"--rdzv-backend {chosen.rdzv_backend}: there is a controller instead: --controller HOST:PORT")
    elif chosen.controller is None and _is_of_several(chosen.nnodes) and chosen.local_nodes is None:
        chosen.controller = _controller(chosen)
    chosen.run_id = ""
    if chosen.name is None and chosen.rdzv_id not in ("", "none"):
        chosen.name, chosen.run_id = _name(chosen.rdzv_id), chosen.rdzv_id
    if chosen.module and chosen.no_python and not chosen.run_path:
        raise UsageError("--no-python and --module: a module is run by python; give one of them")
    if chosen.shutdown_timeout is None:
        chosen.shutdown_timeout = _shutdown_timeout()


def kind(chosen: argparse.Namespace) -> Literal["script", "module", "exec"]:
    """What SCRIPT is."""
    if chosen.run_path:
        return "script"
    if chosen.no_python:
        return "exec"
    return "module" if chosen.module else "script"


def signals(chosen: argparse.Namespace) -> tuple[int, ...]:
    """Those that end the job as SIGTERM does, beside it."""
    return tuple(getattr(signal, name) for name in _MORE_SIGNALS if name in _names(chosen.signals_to_handle))


def variables(chosen: argparse.Namespace) -> dict[str, str]:
    """What torchrun tells workers of its flags: the signals that are handled, and the id as it was given."""
    told = {"TORCHELASTIC_SIGNALS_TO_HANDLE": chosen.signals_to_handle or ",".join(_SIGNALS)}
    return {**told, "TORCHELASTIC_RUN_ID": chosen.run_id} if chosen.run_id else told


def store_port(chosen: argparse.Namespace, *, hosts: bool) -> int:
    """Where workers of a job of one node find their store (MASTER_PORT); 0: at any port. Raises UsageError."""
    port: int | None = chosen.master_port
    if port is None or hosts or _is_of_several(chosen.nnodes) or chosen.local_nodes not in (None, "1"):
        return 0
    if chosen.rdzv_backend != "static" or chosen.rdzv_endpoint:
        return 0  # as torchrun: it is the static rendezvous's alone
    if not 0 <= port < 2**16:
        raise UsageError(f"--master-port {port}: give a port, up to 65535")
    return port


def _refuse(chosen: argparse.Namespace) -> None:
    for flag, (nothing, instead) in _REFUSED.items():
        value = getattr(chosen, flag[2:].replace("-", "_"))
        if value not in ("", nothing):
            raise UsageError(f"{flag} {value} is torchrun's alone: {instead}")
    if chosen.virtual_local_rank and (chosen.in_process or chosen.standby):
        other = "--in-process" if chosen.in_process else "--standby"
        raise UsageError(f"--virtual-local-rank with {other}: a process that waits cannot change its GPU; give one")
    if chosen.numa_binding and chosen.standby:
        raise UsageError("--numa-binding with --standby: who waits for any rank is near no GPU yet; give one")
    unknown = ", ".join(sorted(_names(chosen.signals_to_handle) - {*_SIGNALS, *_MORE_SIGNALS}))
    if unknown:
        raise UsageError(f"--signals-to-handle {unknown}: there are {', '.join((*_SIGNALS, *_MORE_SIGNALS))}")
    python = os.environ.get("PYTHON_EXEC", sys.executable)
    if python != sys.executable and not chosen.no_python:
        raise UsageError(f"PYTHON_EXEC {python}: run ftrain by that Python, or use --no-python {python} SCRIPT")


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")} - {""}


def _name(rdzv_id: str) -> str:
    """A job's name, from what may be of any length and have any characters."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in rdzv_id)
    if len(name) <= _NAME_LENGTH_MAX:
        return name
    digest = hashlib.sha256(rdzv_id.encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{name[: _NAME_LENGTH_MAX - _DIGEST_LENGTH - 1]}-{digest}"


def _shutdown_timeout() -> float:
    word = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    try:
        return float(word) if word else _SHUTDOWN_SECONDS
    except ValueError:
        raise UsageError(f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={word}: give seconds") from None


def _is_of_several(nnodes: str) -> bool:
    return nnodes.rpartition(":")[2] != "1"


def _controller(chosen: argparse.Namespace) -> str | None:
    if chosen.rdzv_endpoint:
        return _endpoint(chosen.rdzv_endpoint)
    if chosen.master_addr:
        return f"{chosen.master_addr}:{chosen.master_port or _MASTER_PORT}"
    return None


def _endpoint(word: str) -> str:
    host, colon, port = word.rpartition(":")
    if not colon or word.endswith("]"):
        return f"{word}:{_RDZV_PORT}"
    if not host or not port.isdecimal() or (":" in host and not host.endswith("]")):
        raise UsageError(f"--rdzv-endpoint {word}: give HOST or HOST:PORT, an IPv6 address in brackets")
    return word


def _settle_conf(chosen: argparse.Namespace) -> None:
    """``--rdzv-conf``: how long to wait for each other, and until silence is an end."""
    text = chosen.rdzv_conf.strip("'\"")  # quotes that no shell took away
    pairs = dict(pair.strip().partition("=")[::2] for pair in text.split(",") if pair.strip())
    numbers: dict[str, float] = {}
    for key, value in pairs.items():
        if key in _CONF_WITHOUT_EFFECT:
            continue
        if key not in _CONF_NUMBERS:
            raise UsageError(f"--rdzv-conf {key}: there is no such setting here; see docs/torchrun.md")
        try:
            numbers[key] = float(value)
        except ValueError:
            raise UsageError(f"--rdzv-conf {key}={value}: give seconds") from None
    if (joining := numbers.get("join_timeout", numbers.get("timeout"))) is not None:
        chosen.join_timeout_seconds = joining
    chosen.last_call_seconds = numbers.get("last_call_timeout")
    if "keep_alive_interval" in numbers or "keep_alive_max_attempt" in numbers:
        silence = numbers.get("keep_alive_interval", 5.0) * numbers.get("keep_alive_max_attempt", 3.0)
        chosen.heartbeat_timeout_seconds = silence

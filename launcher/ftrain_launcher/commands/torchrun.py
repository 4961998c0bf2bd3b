"""torchrun's flags, as those of torch 2.13 mean them, for scripts and habits that come from there.

Each is either taken for what it means here, or refused in one line that says what to use. Its variables ``PET_NAME``
are read as well, and names may be written with underscores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ftrain_launcher.errors import UsageError

if TYPE_CHECKING:
    from ftrain_launcher.processes.streams import Streams

_MASTER_PORT, _RDZV_PORT = 29500, 29400
_BACKENDS = ("static", "c10d")
_CONF_WITHOUT_EFFECT = ("close_timeout", "is_host", "read_timeout", "last_call_timeout", "use_libuv", "store_type")
_SIGNALS = {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}
_REFUSED = {
    "--event-log-handler": ("null", "read `ftrain incidents --json` instead"),
    "--logs-specs": ("", "choose with --log-dir, --redirects, --tee and --local-ranks-filter"),
    "--duplicate-stdout-filters": ("", "filter the files in --log-dir instead"),
    "--duplicate-stderr-filters": ("", "filter the files in --log-dir instead"),
    "--numa-binding": ("", "bind in the script, or start it with --no-python under numactl"),
}
"""What has no meaning here: the value that asks for nothing, and what to use."""

Add = Callable[..., Any]


def adder(parser: argparse.ArgumentParser) -> Add:
    """Like ``parser.add_argument``, but a flag may be written with underscores, and ``PET_NAME`` is its default."""

    def add(*names: str, **settings: Any) -> Any:
        flags = [name for name in names if name.startswith("--")]
        if not flags:
            return parser.add_argument(*names, **settings)
        made = parser.add_argument(*names, *(f"--{f[2:].replace('-', '_')}" for f in flags if "-" in f[2:]), **settings)
        value = os.environ.get(f"PET_{made.dest.upper()}")
        if value is not None and made.nargs != 0:
            made.default = value
        elif value is not None:
            made.default = value not in ("", "0")
        return made

    return add


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
    add("--master-port", type=int, metavar="PORT", help=f"its port; default {_MASTER_PORT}")
    add("--local-addr", default="", metavar="HOST", help="the address of this host that others reach it at")
    add("--monitor-interval", type=float, metavar="S", help="no effect: ends of workers are told, not looked for")
    add("--start-method", metavar="NAME", help="no effect, as in torchrun for scripts; see --no-zygote")
    add("--role", default="default", help="what ROLE_NAME is to say")
    add("--no-python", action="store_true", help="SCRIPT is a program, to be executed")
    add("--run-path", action="store_true", help="SCRIPT is run in this interpreter, which it always is")
    add("-r", "--redirects", default="0", metavar="STREAMS", help="not shown: 1 stdout, 2 stderr, 3 both, or 0:1,1:2")
    add("-t", "--tee", default="0", metavar="STREAMS", help="shown all the same")
    add("--local-ranks-filter", default="", metavar="0,1,...", help="local ranks that are shown; default: all")
    add("--signals-to-handle", default="", metavar="NAMES", help="SIGTERM, SIGINT, SIGHUP and SIGQUIT are")
    about = "how long workers may take to end when the job does; default 5"
    add("--shutdown-timeout", type=float, default=5.0, metavar="S", help=about)
    add("--virtual-local-rank", action="store_true", help="refused: see docs/torchrun.md")
    for flag, (_, instead) in _REFUSED.items():
        add(flag, default="", help=f"refused: {instead}")


def settle(chosen: argparse.Namespace) -> None:
    """Turn them into `ftrain run`'s own. Raises UsageError for what cannot be had."""
    _refuse(chosen)
    _settle_conf(chosen)
    if chosen.standalone:
        chosen.nnodes = "1"
    elif chosen.rdzv_backend not in _BACKENDS:
        raise UsageError(f"--rdzv-backend {chosen.rdzv_backend}: there is a controller instead: --controller HOST:PORT")
    elif chosen.controller is None and _is_of_several(chosen.nnodes) and chosen.local_nodes is None:
        chosen.controller = _controller(chosen)
    if chosen.name is None and chosen.rdzv_id not in ("", "none"):
        chosen.name = "".join(c if c.isalnum() or c in "-_" else "-" for c in chosen.rdzv_id)
    if chosen.module and chosen.no_python:
        raise UsageError("--no-python and --module: a module is run by python; give one of them")
    if chosen.run_path and not os.path.isabs(chosen.script):
        raise UsageError(f"--run-path {chosen.script}: give the whole path, as torchrun wants it")


def kind(chosen: argparse.Namespace) -> Literal["script", "module", "exec"]:
    """What SCRIPT is."""
    if chosen.no_python and not chosen.run_path:
        return "exec"
    return "module" if chosen.module else "script"


def streams(chosen: argparse.Namespace) -> Streams:
    """What the terminal shows of the workers. Raises UsageError."""
    from ftrain_launcher.processes.streams import Streams, is_choice

    for flag, text in (("--redirects", chosen.redirects), ("--tee", chosen.tee)):
        if not is_choice(text):
            raise UsageError(f"{flag} {text}: give 0 to 3 for all local ranks, or like 0:1,1:2 for some")
    lanes = chosen.local_ranks_filter.split(",") if chosen.local_ranks_filter else []
    if not all(lane.strip().isdigit() for lane in lanes):
        raise UsageError(f"--local-ranks-filter {chosen.local_ranks_filter}: give numbers like 0,1,2")
    return Streams(chosen.redirects, chosen.tee, tuple(map(int, lanes)))


def _refuse(chosen: argparse.Namespace) -> None:
    for flag, (nothing, instead) in _REFUSED.items():
        value = getattr(chosen, flag[2:].replace("-", "_"))
        if value not in ("", nothing):
            raise UsageError(f"{flag} {value} is torchrun's alone: {instead}")
    if chosen.virtual_local_rank:
        raise UsageError("--virtual-local-rank is torchrun's alone: use torch.cuda.set_device(ctx.local_rank) instead")
    unknown = ", ".join(sorted(set(filter(None, chosen.signals_to_handle.split(","))) - _SIGNALS))
    if unknown:
        raise UsageError(f"--signals-to-handle {unknown}: those that are handled are {', '.join(sorted(_SIGNALS))}")


def _is_of_several(nnodes: str) -> bool:
    return nnodes.rpartition(":")[2] != "1"


def _controller(chosen: argparse.Namespace) -> str | None:
    if chosen.rdzv_endpoint:
        host, _, port = chosen.rdzv_endpoint.rpartition(":") if ":" in chosen.rdzv_endpoint else ("", "", "")
        return chosen.rdzv_endpoint if host and port else f"{chosen.rdzv_endpoint}:{_RDZV_PORT}"
    if chosen.master_addr:
        return f"{chosen.master_addr}:{chosen.master_port or _MASTER_PORT}"
    return None


def _settle_conf(chosen: argparse.Namespace) -> None:
    """``--rdzv-conf``: how long to wait for each other, and until silence is an end."""
    pairs = dict(pair.strip().partition("=")[::2] for pair in chosen.rdzv_conf.split(",") if pair.strip())
    numbers: dict[str, float] = {}
    for key, value in pairs.items():
        if key in _CONF_WITHOUT_EFFECT:
            continue
        if key not in ("join_timeout", "timeout", "keep_alive_interval", "keep_alive_max_attempt"):
            raise UsageError(f"--rdzv-conf {key}: there is no such setting here; see docs/torchrun.md")
        try:
            numbers[key] = float(value)
        except ValueError:
            raise UsageError(f"--rdzv-conf {key}={value}: give seconds") from None
    if (joining := numbers.get("join_timeout", numbers.get("timeout"))) is not None:
        chosen.join_timeout_seconds = joining
    if "keep_alive_interval" in numbers or "keep_alive_max_attempt" in numbers:
        silence = numbers.get("keep_alive_interval", 5.0) * numbers.get("keep_alive_max_attempt", 3.0)
        chosen.heartbeat_timeout_seconds = silence

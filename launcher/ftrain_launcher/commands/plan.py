"""``ftrain plan``: what snapshots of a model would cost and survive on so many nodes, and what rivals would give.

Needs no job and no cluster: every figure is given, or a documented default (docs/planning.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.commands import checks
from ftrain_launcher.commands.options import Commands, add_command, print_json
from ftrain_launcher.commands.text import print_line, print_table
from ftrain_launcher.errors import UsageError
from ftrain_launcher.planning import rates

if TYPE_CHECKING:
    from ftrain_launcher.planning.model import Job

_NODES_MAX = 1_000_000
_NPROC_MAX = 1024
# Beyond these a figure is a slip of the pen, and its plan no number that can be printed.
_BYTES_MAX = 1e18
_BYTES_PER_PARAM_MIN, _BYTES_PER_PARAM_MAX = 0.01, 100
_BYTES_PER_SECOND_MIN = 1e3
_FAILURES_MIN, _FAILURES_MAX = 1e-9, 1e6
_STEP_SECONDS_MIN = 1e-3
_SECONDS_MAX = 1e9
_BYTES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_COUNTS = _BYTES | {"B": 1e9}
_ARENA_FOLDER = "/dev/shm"


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Plan snapshots: memory, traffic, the best interval, survival and goodput, beside disk and replicas."
    parser = add_command(commands, "plan", plan, about)
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--params", metavar="N", help="parameters of the model, like 70B")
    size.add_argument("--state", metavar="BYTES", help="or the state of all ranks, replicas counted once, like 840G")
    about_bytes = f"of state, optimizer included; default {rates.BYTES_PER_PARAM:g}: float32 and AdamW"
    add("--bytes-per-param", type=float, metavar="X", help=about_bytes)
    add("--nnodes", type=int, required=True, metavar="N", help="nodes of the job")
    add("--nproc-per-node", type=int, default=8, metavar="N", help="ranks per node; default 8")
    add("--parity", type=int, metavar="M", help="lost nodes that a group survives; default as for ftrain run")
    add("--group-size", type=int, metavar="N", help="nodes of a group, k + m; default 8, what ftrain run makes")
    names = ", ".join(rates.PUBLISHED)
    about_failures = f"per node and day, or what was published: {names}; default {rates.FAILURES_DEFAULT}"
    add("--failures", default=rates.FAILURES_DEFAULT, metavar="RATE|NAME", help=about_failures)
    _add_times(add)
    _add_rates(add)
    add("--measure", action="store_true", help="measure --copy-bandwidth on this machine")
    add("--out", type=Path, metavar="FILE", help="write a plot, a PNG (needs matplotlib: pip install ftrain[plot])")
    add("--json", action="store_true", help="print JSON, as documented in docs/planning.md")


def _add_times(add: Callable[..., object]) -> None:
    for flag, about in (
        ("--step-seconds", f"of one training step; default {rates.STEP_SECONDS:g}"),
        ("--restart-seconds", f"failure to training again, but for moving bytes; default {rates.RESTART_SECONDS:g}"),
        ("--repair-seconds", "a node's loss until its group has all parity again; default: the restart and the bytes"),
        (
            "--stall-seconds",
            f"what a snapshot costs training; default {rates.SNAPSHOT_COPIES:g} copies of a rank's bytes",
        ),
    ):
        add(flag, type=float, metavar="S", help=about)


def _add_rates(add: Callable[..., object]) -> None:
    for flag, default, about in (
        ("--copy-bandwidth", rates.COPY_BYTES_PER_SECOND, "one rank's copy into shared memory"),
        ("--protect-bandwidth", rates.PROTECT_BYTES_PER_SECOND, "what a node may send for parity"),
        ("--storage-bandwidth", rates.STORAGE_BYTES_PER_SECOND, "one node's share of the storage"),
    ):
        add(flag, metavar="RATE", help=f"{about}, bytes a second; default {default / 1e9:g}G")


def plan(chosen: argparse.Namespace) -> int:
    """Print the plan, and draw it if asked to."""
    from ftrain_launcher.planning import model, plot, table

    if chosen.out is not None:
        plot.available()
    job = _job(chosen)
    found = model.outcomes(job)
    if chosen.out is not None:
        plot.draw(job, chosen.out)
    if chosen.json:
        print_json({"job": job, "mtbf_seconds": job.mtbf_seconds, "schemes": found})
        return 0
    print_line(table.summary(job))
    print_line(f"failures: {_source(chosen.failures)}")
    print_line(f"assumed (docs/planning.md): {', '.join(_assumed(chosen, job)) or 'nothing'}")
    print_table(table.heads(found), table.rows(found))
    if chosen.out is not None:
        print_line(f"{chosen.out}: the plot")
    return 0


def _job(chosen: argparse.Namespace) -> Job:
    from ftrain_launcher.planning.model import Job

    nodes = checks.at_least("--nnodes", chosen.nnodes, 1)
    if nodes > _NODES_MAX:
        raise UsageError(f"--nnodes {nodes}: at most {_NODES_MAX:,}")
    parity, ranks = checks.parity(chosen.parity, nodes), chosen.nproc_per_node
    return Job(
        state_bytes=_state_bytes(chosen),
        nodes=nodes,
        nproc_per_node=int(_between(f"--nproc-per-node {ranks}", ranks, "ranks of a node", 1, _NPROC_MAX)),
        parity=parity,
        group_size=_group_size(chosen.group_size, nodes, parity),
        failures_per_node_day=_failures(chosen.failures),
        step_seconds=_seconds("--step-seconds", chosen.step_seconds, _STEP_SECONDS_MIN) or rates.STEP_SECONDS,
        restart_seconds=_seconds("--restart-seconds", chosen.restart_seconds) or rates.RESTART_SECONDS,
        repair_seconds=_seconds("--repair-seconds", chosen.repair_seconds),
        stall_seconds=_seconds("--stall-seconds", chosen.stall_seconds),
        copy_bytes_per_second=_copy_bytes_per_second(chosen),
        protect_bytes_per_second=_rate("--protect-bandwidth", chosen.protect_bandwidth, rates.PROTECT_BYTES_PER_SECOND),
        storage_bytes_per_second=_rate("--storage-bandwidth", chosen.storage_bandwidth, rates.STORAGE_BYTES_PER_SECOND),
    )


def _state_bytes(chosen: argparse.Namespace) -> float:
    if chosen.state is not None:
        if chosen.bytes_per_param is not None:
            raise UsageError("--bytes-per-param: only with --params; --state has all bytes")
        return _amount("--state", chosen.state, _BYTES, "bytes, like 840G")
    each = rates.BYTES_PER_PARAM if chosen.bytes_per_param is None else chosen.bytes_per_param
    _between(f"--bytes-per-param {each:g}", each, "bytes", _BYTES_PER_PARAM_MIN, _BYTES_PER_PARAM_MAX)
    return each * _amount("--params", chosen.params, _COUNTS, "a number, like 70B")


def _group_size(chosen: int | None, nodes: int, parity: int) -> int:
    from ftrain_snapshot.placement import GROUP_SIZE_MAX

    if chosen is None:
        return min(nodes, GROUP_SIZE_MAX)
    if not parity < chosen <= nodes:
        raise UsageError(
            f"--group-size {chosen} with {nodes} nodes and parity {parity}: a group has data and parity on different "
            f"nodes, so give {parity + 1} to {nodes}"
        )
    return chosen


def _failures(word: str) -> float:
    if word in rates.PUBLISHED:
        return rates.PUBLISHED[word].per_node_day
    wanted = f"failures per node and day, like 0.004, or one of {', '.join(rates.PUBLISHED)}"
    try:
        rate = float(word)
    except ValueError:
        raise UsageError(f"--failures {word}: give {wanted}") from None
    return _between(f"--failures {word}", rate, wanted, _FAILURES_MIN, _FAILURES_MAX)


def _source(word: str) -> str:
    published = rates.PUBLISHED.get(word)
    rate = f"{_failures(word):.3g} per node and day"
    return f"{rate}, as given" if published is None else f"{rate}: {published.source}"


def _assumed(chosen: argparse.Namespace, job: Job) -> list[str]:
    """What was not given, in words."""
    words = (
        (chosen.state is None and chosen.bytes_per_param is None, f"{rates.BYTES_PER_PARAM:g} bytes a parameter"),
        (chosen.step_seconds is None, f"step {job.step_seconds:g} s"),
        (chosen.restart_seconds is None, f"restart {job.restart_seconds:g} s"),
        (chosen.stall_seconds is None, f"a snapshot costs {rates.SNAPSHOT_COPIES:g} copies"),
        (chosen.copy_bandwidth is None and not chosen.measure, f"copy {job.copy_bytes_per_second / 1e9:g} GB/s a rank"),
        (chosen.protect_bandwidth is None, f"network {job.protect_bytes_per_second / 1e9:g} GB/s a node"),
        (chosen.storage_bandwidth is None, f"storage {job.storage_bytes_per_second / 1e9:g} GB/s a node"),
    )
    return [text for assumed, text in words if assumed]


def _copy_bytes_per_second(chosen: argparse.Namespace) -> float:
    if not chosen.measure:
        return _rate("--copy-bandwidth", chosen.copy_bandwidth, rates.COPY_BYTES_PER_SECOND)
    if chosen.copy_bandwidth is not None:
        raise UsageError("--measure and --copy-bandwidth: give one of them")
    from ftrain_launcher.planning.measure import copy_bytes_per_second

    try:
        return copy_bytes_per_second(_ARENA_FOLDER)
    except OSError as error:
        raise UsageError(f"--measure: cannot copy into {_ARENA_FOLDER}: {error.strerror or error}") from error


def _seconds(flag: str, value: float | None, least: float = 1e-9) -> float | None:
    return None if value is None else _between(f"{flag} {value:g}", value, "seconds", least, _SECONDS_MAX)


def _rate(flag: str, word: str | None, default: float) -> float:
    if word is None:
        return default
    return _amount(flag, word, _BYTES, "bytes per second, like 500M or 1.5G", _BYTES_PER_SECOND_MIN)


def _amount(flag: str, word: str, units: dict[str, float], wanted: str, least: float = 1) -> float:
    number, unit = (word[:-1], word[-1].upper()) if word[-1:].isalpha() else (word, "")
    try:
        amount = float(number) * units[unit]
    except (ValueError, KeyError):
        raise UsageError(f"{flag} {word}: give {wanted}") from None
    return _between(f"{flag} {word}", amount, wanted, least, _BYTES_MAX)


def _between(given: str, value: float, wanted: str, least: float, most: float) -> float:
    if not least <= value <= most:
        raise UsageError(f"{given}: give {wanted}, {least:g} to {most:g}")
    return value

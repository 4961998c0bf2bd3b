"""Options of ``ftrain run`` that act only beside others: a table, and one rule for all of it.

Whoever gives an option counts on what it does. So one that could do nothing is refused if another option is what
lacks, and warned of if only a second node is: launch scripts have one line for one node and for many. torchrun's own
options are taken as torchrun takes them (docs/torchrun.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from ftrain_launcher.errors import UsageError
from ftrain_launcher.terminal import announce

_NOTHING = (None, False, 0, "auto")
"""Values that ask for nothing."""


@dataclass(frozen=True)
class _Need:
    options: tuple[str, ...]
    met: Callable[[argparse.Namespace], bool]
    says: str


_OPTIONS = (
    _Need(
        ("shrink_after_seconds",),
        lambda chosen: ":" in (chosen.nnodes if chosen.local_nodes is None else chosen.local_nodes),
        "only with MIN:MAX nodes: a job of one size does not go on with fewer",
    ),
    _Need(
        ("abort_grace_seconds",),
        lambda chosen: bool(chosen.in_process or chosen.standby),
        "only with --in-process or --standby: else workers are killed at once",
    ),
    _Need(
        ("durable_every", "durable_keep"),
        lambda chosen: chosen.durable is not None,
        "say with --durable URL where checkpoints go",
    ),
    _Need(
        ("isolate_slow",),
        lambda chosen: chosen.detect == "act",
        "only with --detect act: else no node is taken out",
    ),
    _Need(
        ("check_replicas",),
        lambda chosen: chosen.detect != "off",
        "not with --detect off, which says nothing of replicas that differ; give 0",
    ),
    _Need(
        ("codec", "protect_bandwidth", "isolate_slow"),
        lambda chosen: chosen.parity != 0,
        "not with --parity 0: no node holds anything for another",
    ),
    _Need(
        ("ray_address", "ray_per_worker"),
        lambda chosen: chosen.engine != "local",  # `host` and `none` find them where Ray starts them
        "only with --engine ray",
    ),
    _Need(
        ("local_nodes", "controller", "controller_candidates", "node_rank", "failure_domain"),
        lambda chosen: chosen.engine != "ray",
        "with --engine ray the machines are Ray's choice",
    ),
    _Need(
        ("local_nodes",),
        lambda chosen: chosen.engine == "local",
        "only with --engine local; hosts are counted by --nnodes",
    ),
    _Need(
        ("node_rank", "failure_domain"),
        lambda chosen: chosen.engine != "none",
        "not with --engine none: no node of the job is here",
    ),
)
_NODES = ("codec", "protect_bandwidth", "isolate_slow")
"""What acts between nodes."""


def check(chosen: argparse.Namespace) -> None:
    """Raises UsageError for an option that lacks the one it acts beside. torchrun's are settled."""
    for need in _OPTIONS:
        for name in need.options:
            if _asks(chosen, name) and not need.met(chosen):
                raise UsageError(f"{_given(chosen, name)}: {need.says}")


def warn(chosen: argparse.Namespace, nodes: int) -> None:
    """Tell of options that do nothing with so few nodes."""
    for name in _NODES if nodes == 1 else ():
        if _asks(chosen, name):
            announce(f"warning: {_given(chosen, name)}: without effect on a single node")


def _asks(chosen: argparse.Namespace, name: str) -> bool:
    """Whether the option was given, and asks for something: node 0 is one like any other."""
    value = getattr(chosen, name)
    return value is not None if name == "node_rank" else value not in _NOTHING


def _given(chosen: argparse.Namespace, name: str) -> str:
    flag, value = f"--{name.replace('_', '-')}", getattr(chosen, name)
    return flag if value is True else f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"

"""Pure: what of a Ray cluster a job asks for, and which of its nodes may run where.

A job of fixed size is one placement group, with a bundle for each node and each spare, on as many machines
(STRICT_SPREAD); Ray itself finds another place for a bundle whose machine is lost. Of a job of MIN to MAX nodes,
MIN are such a group, so that it begins as soon as they have room. The others come one by one, each wherever the job
is not yet. Two nodes of a job on one machine would be lost together: the second stands aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from ftrain_launcher.engines.ray.order import Order
from ftrain_launcher.errors import UsageError

HEAD_RESOURCE = "node:__internal_head__"
"""Ray's mark of the machine whose loss is the cluster's: there the controller adds no risk."""
_SHARE_MAX = 1e6
EXIT_USAGE = 2


def bundles(order: Order) -> int:
    """How many nodes the job begins with: all, or of MIN:MAX the fewest that it can train with."""
    return order.most + order.spares if order.least == order.most else order.least


def extras(order: Order) -> int:
    """How many may come later."""
    return order.most + order.spares - bundles(order)


def workers(word: str, machines: Iterable[Mapping[str, float]]) -> int:
    """``--nproc-per-node``: a number, or as many GPUs as every machine has that has any.

    Raises:
        UsageError: it is neither.
    """
    if word == "gpu":
        counts = [int(machine["GPU"]) for machine in machines if machine.get("GPU", 0) >= 1]
        if not counts:
            raise UsageError("--nproc-per-node gpu: no machine of the Ray cluster has a GPU; give a number")
        return min(counts)
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"--nproc-per-node {word}: with --engine ray give a number, 1 or more, or gpu")
    return int(word)


def per_worker(word: str) -> dict[str, float]:
    """``--ray-per-worker``: Ray's resources that one worker takes.

    Raises:
        UsageError: it cannot be read.
    """
    found: dict[str, float] = {}
    for part in word.split(","):
        name, _, number = part.strip().partition("=")
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if not name or not 0 <= amount < _SHARE_MAX:
            raise UsageError(f"--ray-per-worker {word}: give Ray's resources as NAME=NUMBER,..., like CPU=4,GPU=1")
        found[name] = amount
    if not any(found.values()):
        raise UsageError(f"--ray-per-worker {word}: give more than 0 of something")
    return found


def share(
    each: Mapping[str, float] | None, workers: int, machines: Iterable[Mapping[str, float]], nodes: int
) -> dict[str, float]:
    """What a node takes of its machine. By default a CPU a worker, and a GPU if ``nodes`` machines have so many."""
    if each is None:
        gpus = sum(machine.get("GPU", 0.0) >= workers for machine in machines) >= nodes
        each = {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}
    return {name: amount * workers for name, amount in each.items() if amount}


def has_room(machines: Iterable[Mapping[str, float]], share: Mapping[str, float]) -> int:
    """How many machines could run a node if nothing else ran there."""
    return sum(all(machine.get(name, 0.0) >= amount for name, amount in share.items()) for machine in machines)


def machines(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, float]]:
    """Of ``ray.nodes()``, those that live: id to resources."""
    return {str(node["NodeID"]): node["Resources"] for node in nodes if node["Alive"]}


class Places:
    """Which machine each member runs on."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._aside: set[str] = set()
        self._useless: set[str] = set()

    def claim(self, member: str, machine: str) -> bool:
        """A member is on this machine; may it run there? It may not where another one does."""
        self._of.pop(member, None)
        if machine in self._of.values():
            self._aside.add(member)
            return False
        self._aside.discard(member)
        self._of[member] = machine
        return True

    def leave(self, member: str, *, useless: bool = False) -> None:
        """It runs nothing any more where it was; ``useless``: nor would another one there."""
        machine = self._of.pop(member, None)
        self._aside.discard(member)
        if useless and machine is not None:
            self._useless.add(machine)

    def holds(self, member: str) -> bool:
        """It runs somewhere."""
        return member in self._of

    @property
    def empty(self) -> bool:
        """Nobody runs anywhere."""
        return not self._of

    @property
    def aside(self) -> int:
        """How many have no machine to themselves."""
        return len(self._aside)

    @property
    def closed(self) -> tuple[str, ...]:
        """The machines where no other one is of use."""
        return tuple(sorted({*self._of.values(), *self._useless}))


class Next(Enum):
    """What a member does when its launcher has ended."""

    AGAIN = "again"
    """It was cut off or killed: the job may want this machine still."""
    LEFT = "left"
    """The job is over, or gave this machine up in order."""
    REFUSED = "refused"
    """It will never be of use here: the reason was said."""


def after(exit_code: int) -> Next:
    """What a host's exit code means (docs/launching.md): the job's own end is the controller's matter."""
    if exit_code == 0:
        return Next.LEFT
    return Next.REFUSED if exit_code == EXIT_USAGE else Next.AGAIN

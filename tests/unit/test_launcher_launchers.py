"""Which launcher hears what, and which host may join."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from unit.coordinator_job import config

from ftrain_launcher.control.launchers import Launchers, refusal
from ftrain_launcher.engine_messages import JobEnded, Offer, ReapNode, StartNode

_PLAIN = config(nodes=4, nproc=2)
JOB = msgspec.structs.replace(_PLAIN, work=msgspec.structs.replace(_PLAIN.work, job="one", argv=("/t.py", "-x", "1")))
OFFER = Offer(
    launcher="x",
    hostname="h2",
    job="one",
    kind="script",
    argv=("/t.py", "-x", "1"),
    nodes=4,
    nproc_per_node=2,
    parity=1,
    node_rank=1,
)


class Box:
    """An outbox that keeps what is put in."""

    def __init__(self) -> None:
        self.got: list[msgspec.Struct] = []

    def put(self, message: msgspec.Struct) -> None:
        self.got.append(message)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"argv": ("/u.py", "-x", "1")}, "the script must be the same on all hosts: /u.py here, /t.py at"),
        ({"argv": ("/t.py",)}, "its arguments must be the same on all hosts: none here, -x 1 at"),
        ({"kind": "module"}, "-m must be the same"),
        ({"nodes": 3}, "--nnodes must be the same on all hosts: 3 here, 4 at the controller's host"),
        ({"nproc_per_node": 1}, "--nproc-per-node must be the same"),
        ({"parity": 2}, "--parity must be the same"),
        ({"role": "ps"}, "--role must be the same on all hosts: ps here, default at the controller's host"),
        ({"job": "two"}, "--name two, but the job at this controller is one"),
        ({"protocol": 99}, "install one everywhere"),
    ],
)
def test_a_host_that_was_asked_for_something_else_is_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    reason = refusal(msgspec.structs.replace(OFFER, **change), JOB)
    assert reason is not None
    assert says in reason
    assert "\n" not in reason


def test_a_host_need_not_know_the_jobs_name() -> None:
    assert refusal(msgspec.structs.replace(OFFER, job=""), JOB) is None


def test_each_host_hears_of_its_own_node_and_all_of_the_end() -> None:
    one, two = Box(), Box()
    launchers: Any = Launchers()
    for box, node in ((one, "node-0"), (two, "node-1")):
        launchers.add(box)
        launchers.provides(box, f"host of {node}")
        launchers.start(StartNode(node), f"host of {node}")
    launchers.start(StartNode("node-2"), "a host that is away")
    launchers.tell(ReapNode("node-1"))
    launchers.tell(ReapNode("node-1"))
    launchers.tell(JobEnded(0, "done"))
    assert one.got == [StartNode("node-0"), JobEnded(0, "done")]
    assert two.got == [StartNode("node-1"), ReapNode("node-1"), JobEnded(0, "done")]


def test_one_that_emulates_nodes_provides_them_all() -> None:
    box = Box()
    launchers: Any = Launchers()
    launchers.add(box)
    launchers.provides(box)
    for number in range(3):
        launchers.start(StartNode(f"node-{number}"))
    launchers.tell(ReapNode("node-1"))
    launchers.remove(box)
    launchers.tell(JobEnded(0, "done"))
    assert box.got == [*(StartNode(f"node-{n}") for n in range(3)), ReapNode("node-1")]

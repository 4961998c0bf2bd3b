"""A controller whose journal lacks the newest generation goes on from what the generation's nodes tell of it."""

from __future__ import annotations

import msgspec
import pytest
from simulation.checkers import state_of
from unit.coordinator_job import config, snapshot

from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Command, ControllerRestarted, Event, JobStarted, Joined, Send, Tick
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.messages import Form, Join, RankState, Stop, Stopped, ToAgent
from ftrain_snapshot.messages import Holding, Inventory, Peer, SnapshotId

NODES = ("node-0", "node-3", "node-2")
CONFIG = msgspec.structs.replace(config(spares=0, hosts=True), candidates=("a:1", "b:1"))
FORM = Form(
    generation=2,
    position=1,
    peers=tuple(Peer(i, node, "h", 1) for i, node in enumerate(NODES)),
    store_host="h",
    store_port=1,
    restore=snapshot(5),
    groups=((0, 1, 2),),
    quorums=(("node-0", "node-1", "node-2"), NODES),
    world=1,
    work=CONFIG.work,
)


class Recalling:
    """A controller that begins with nothing but this."""

    def __init__(self, form: Form, stopped: int) -> None:
        self.now, self.lines = 0.0, list[bytes]()
        self.coordinator = Coordinator(CONFIG)
        self.commands: list[Command] = []
        self.submit(JobStarted(CONFIG))
        self.submit(ControllerRestarted(4, stopped, form))

    def submit(self, event: Event) -> None:
        self.now += 0.1
        self.lines.append(encode(Entry(self.now, event)))
        self.commands = self.coordinator.handle(event, self.now)

    def join(self, node: str, generation: int, stopped: int) -> None:
        ranks = (RankState(NODES.index(node), 0, 7, "running", 6),) if generation else ()
        join = Join(
            node=node, host="h", agent_pid=1, daemon_pid=1, daemon_port=1,
            generation=generation, stopped=stopped, ranks=ranks, term=4, accepted=2,
        )  # fmt: skip
        self.submit(Joined(join, len(self.lines)))

    def stop(self, node: str, held: SnapshotId) -> None:
        position = NODES.index(node)
        inventory = Inventory((Holding(held, position, data=True, parity=True),))
        port = 1 if position == 0 else None
        self.submit(Stopped(node=node, generation=self.coordinator.generation, inventory=inventory, store_port=port))

    def to(self, kind: type[ToAgent]) -> dict[str, ToAgent]:
        return {c.node: c.message for c in self.commands if isinstance(c, Send) and isinstance(c.message, kind)}

    def replayed(self) -> Coordinator:
        first, *rest = map(decode, self.lines)
        assert isinstance(first.event, JobStarted)
        return rebuild(first.event, first.now, rest)


def test_nodes_that_all_train_go_on_as_if_nothing_had_happened() -> None:
    job = Recalling(FORM, stopped=2)
    for node in NODES:
        job.join(node, 2, 2)
        assert job.to(Stop) == {}
    coordinator = job.coordinator
    assert (coordinator.phase, coordinator.formed, coordinator.positions) == (Phase.RUNNING, 2, list(NODES))
    assert {coordinator.nodes[n].state for n in NODES} == {NodeState.ACTIVE}
    assert coordinator.restore == snapshot(5)
    assert state_of(job.replayed()) == state_of(coordinator)


def test_nodes_that_had_stopped_for_another_one_begin_with_the_newest_that_they_hold() -> None:
    job = Recalling(FORM, stopped=6)
    for node in NODES:
        job.join(node, 0, 6)
    assert job.coordinator.generation == 7
    newest = snapshot(9, generation=2)
    for node in NODES:
        job.stop(node, newest)
    forms = job.to(Form)
    assert set(forms) == set(NODES)
    assert {form.restore for form in forms.values() if isinstance(form, Form)} == {newest}
    assert job.coordinator.quorums == [*FORM.quorums]
    assert state_of(job.replayed()) == state_of(job.coordinator)


@pytest.mark.parametrize("here", [("node-2",), ("node-3",)])
def test_too_few_of_them_wait_and_form_nothing(here: tuple[str, ...]) -> None:
    job = Recalling(FORM, stopped=2)
    for node in here:
        job.join(node, 2, 2)
    for _ in range(5):
        job.now = job.coordinator.next_deadline() or job.now
        job.submit(Tick())
        assert job.to(Form) == {}
        for node in here if job.coordinator.phase is Phase.STOPPING else ():
            job.stop(node, snapshot(9, generation=2))
            assert job.to(Form) == {}
    assert job.coordinator.formed == 2

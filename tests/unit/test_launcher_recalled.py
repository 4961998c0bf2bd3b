"""A controller whose journal lacks the newest generation goes on from what the generation's nodes tell of it."""

from __future__ import annotations

import msgspec
import pytest
from simulation.checkers import state_of
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.engine_messages import NodeGone
from ftrain_launcher.from_agent import Join, RankState, Stopped
from ftrain_launcher.job.candidates import LOOK_SECONDS
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Command, ControllerRestarted, CordonNode, Event, JobStarted, Joined, Send, Tick
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.to_agent import Cordoned, Form, Stop, ToAgent
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.words import SnapshotId

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


def test_what_operators_took_out_before_it_was_formed_stays_out_and_incidents_keep_their_numbers() -> None:
    """One holds ranks; another one has none, and is not even known to be there."""
    told = (Cordoned("node-2", "it was slow", 5.0, True), Cordoned("node-4-1", "its fan is loud", 6.0, False))
    job = Recalling(msgspec.structs.replace(FORM, cordoned=told, incidents=3), stopped=2)
    for node in NODES:
        job.join(node, 2, 2)
    job.join("node-4-1", 0, 2)
    nodes = job.coordinator.nodes
    assert (nodes["node-2"].state, nodes["node-4-1"].state) == (NodeState.ACTIVE, NodeState.CORDONED)
    assert {n.name: (n.cordon.reason, n.cordon.quarantined) for n in nodes.values() if n.cordon is not None} == {
        "node-2": ("it was slow", True),
        "node-4-1": ("its fan is loud", False),
    }
    assert state_of(job.replayed()) == state_of(job.coordinator)

    job.submit(NodeGone("node-3", "its host is off"))
    assert job.coordinator.incidents[-1].number == 4
    assert job.coordinator.positions == ["node-0", None, "node-2"]


def test_what_was_uncordoned_before_it_was_formed_is_so() -> None:
    """The copy of the journal ends before that."""
    job = Job(CONFIG)
    for node in ("node-0", "node-1", "node-2", "node-3"):
        job.come(node)
    job.tell(CordonNode("node-3", "its fan is loud"))
    assert job.coordinator.nodes["node-3"].state is NodeState.CORDONED
    job.tell(ControllerRestarted(4, 2, FORM))
    assert job.coordinator.nodes["node-3"].cordon is None


def test_the_nodes_are_told_who_was_taken_out_and_how_many_incidents_there_were() -> None:
    job = Job(config())
    job.run()
    job.tell(CordonNode("node-3", "its fan is loud"))
    job.exit(1, code=1)
    job.stop_all({snapshot(3): WHOLE})
    form = job.forms()["node-0"]
    assert ([(c.node, c.reason, c.quarantined) for c in form.cordoned], form.incidents) == (
        [("node-3", "its fan is loud", False)],
        1,
    )


@pytest.mark.parametrize(("term", "grace_seconds"), [(0, 2.0), (4, LOOK_SECONDS)])
def test_who_has_to_look_for_a_new_controller_first_has_time_for_that(term: int, grace_seconds: float) -> None:
    """An agent may just be waiting for the one that is gone when most others have found the new one."""
    job = Job(msgspec.structs.replace(CONFIG, agent_grace_seconds=2.0))
    for node in ("node-0", "node-1", "node-2", "node-3"):
        job.come(node)
    job.stop_all()
    job.step_all()
    job.tell(ControllerRestarted(term, 1))
    assert job.coordinator.next_deadline() == pytest.approx(job.now + grace_seconds, abs=0.1)


def test_nodes_that_all_come_in_time_but_had_ended_their_workers_form_the_next_one() -> None:
    """They were without a controller for too long. What each was told of its generation it must not be told again."""
    job = Recalling(FORM, stopped=2)
    job.join("node-0", 0, 2)
    assert (job.to(Form), job.coordinator.phase, job.coordinator.generation) == ({}, Phase.STOPPING, 3)
    for node in NODES[1:]:
        job.join(node, 0, 2)
    for node in NODES:
        job.stop(node, snapshot(9, generation=2))
    assert set(job.to(Form)) == set(NODES)

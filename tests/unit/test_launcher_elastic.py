"""A job of MIN to MAX nodes: how it begins, shrinks, grows, and what members are told of a start in another world."""

from __future__ import annotations

import msgspec
import pytest
from unit.coordinator_job import DATA, WHOLE, Job, config, snapshot

from ftrain.link import Certified, Misfit
from ftrain_launcher.job.events import LAST_CALL_SECONDS, CordonNode, JobConfig, Leave, Progress, Tick
from ftrain_launcher.job.growth import FIRST_SNAPSHOT_SECONDS, GROW_AFTER_SECONDS
from ftrain_launcher.job.halting import DOUBLINGS_MAX, HOLD_SECONDS, RETRY_SECONDS
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_LOST, EXIT_PROGRAM, EXIT_USAGE
from ftrain_launcher.job.worlds import Worlds, is_same, place
from ftrain_launcher.messages import (
    ArenaShort,
    DurableSearch,
    Failure,
    Form,
    Held,
    Hold,
    RankHalted,
    StateCertified,
    Stop,
    Stopped,
    Trouble,
)
from ftrain_launcher.work import Durable
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.messages import Holding, Inventory
from ftrain_snapshot.storage import DurableId

CERTIFIED = Certified(version=7, ranks=8, tensors=3, compared_bytes=9, counters=1, samplers={}, samples={}, seconds=0.1)


def elastic(least: int = 2, most: int = 4, *, parity: int = 1, hosts: bool = False, **more: object) -> JobConfig:
    whole = config(nodes=most, spares=0, parity=parity, nproc=2, hosts=hosts)
    return msgspec.structs.replace(whole, nodes_min=least, **more)


def running(job: Job, version: int = 5) -> None:
    """All run, and a snapshot is protected."""
    job.run()
    job.tell(Progress(job.coordinator.formed, version, version))


def lose_one(job: Job, node: str, version: int = 5) -> None:
    """A node is gone, the others hold the newest snapshot with its parity."""
    job.lose(node)
    job.stop_all({snapshot(version): WHOLE})


def test_a_lost_node_is_done_without() -> None:
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.stopped("node-0", {snapshot(5): WHOLE})
    assert job.coordinator.positions == ["node-0", "node-2", "node-3"]
    forms = job.forms()
    assert [forms[n].position for n in ("node-0", "node-2", "node-3")] == [0, 1, 2]
    form = forms["node-2"]
    assert (form.restore, form.groups, form.work.parity) == (None, ((0, 1, 2),), 1)
    origin = form.origin
    assert origin is not None
    assert (origin.snapshot, origin.nodes, origin.parity, origin.groups) == (snapshot(5), 4, 1, ((0, 1, 2, 3),))
    assert {peer.node: peer.position for peer in origin.holders} == {"node-0": 0, "node-2": 2, "node-3": 3}
    assert [forms[n].origin.position for n in ("node-0", "node-2", "node-3")] == [0, 2, 3]
    assert sorted(job.coordinator.ranks) == list(range(6))
    [incident] = job.coordinator.incidents
    assert incident.decision == "goes on with 3 nodes (6 ranks); state of step 5 is re-sharded"
    assert (incident.steps_lost, incident.resumed_from) == (0, 5)


def test_the_first_node_that_is_left_hosts_the_store() -> None:
    job = Job(elastic())
    running(job)
    job.lose("node-0")
    for node in ("node-1", "node-2", "node-3"):
        job.stopped(node, {snapshot(5): WHOLE}, port=None)
    assert job.coordinator.phase is Phase.STOPPING
    assert job.to("node-1", Stop)[-1].host_store
    job.stopped("node-1", {snapshot(5): WHOLE})
    assert job.forms()["node-1"].position == 0


def test_below_the_least_the_job_waits() -> None:
    job = Job(elastic(4, 5))
    running(job)
    lose_one(job, "node-1")
    assert len(job.forms()) == 4
    job.step_all(6)
    job.lose("node-2")
    job.stop_all({snapshot(7, 2): WHOLE})
    assert job.coordinator.phase is Phase.STOPPING
    newcomer = job.started[-1]
    job.join(newcomer)
    job.stopped(newcomer)
    assert (job.forms()[newcomer].position, job.forms()[newcomer].restore) == (1, snapshot(7, 2))


def test_before_its_first_snapshot_a_new_world_starts_again_from_the_old_one() -> None:
    job = Job(elastic(1, 5, parity=2))
    running(job)
    lose_one(job, "node-4")
    assert len(job.forms()) == 4
    old = {peer.node: peer.position for peer in job.forms()["node-0"].origin.holders}
    job.lose("node-0")
    assert job.coordinator.generation == 3
    for node in job.members():
        answer_as(job, node, old[node])
    if job.coordinator.phase is Phase.STOPPING:
        answer_as(job, "node-1", old["node-1"])
    form = job.forms()["node-2"]
    assert (form.origin.snapshot, form.origin.nodes, len(form.peers)) == (snapshot(5), 5, 3)
    assert form.origin.position == 2


def answer_as(job: Job, node: str, position: int) -> None:
    """It has stopped, and holds its share of that position of generation 1's snapshot."""
    share = Holding(snapshot(5), position, *WHOLE)
    job.tell(Stopped(node=node, generation=job.coordinator.generation, inventory=Inventory((share,)), store_port=7))


def test_too_many_losses_end_the_job_and_do_not_begin_it_anew() -> None:
    job = Job(elastic(1, 4))
    running(job)
    lose_one(job, "node-1")
    for node in ("node-0", "node-2"):
        job.lose(node)
    answer_as(job, "node-3", 3)
    assert job.end is None
    assert job.coordinator.exit_code == EXIT_LOST


def test_a_node_that_comes_is_taken_in_at_the_end_of_a_step() -> None:
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.step_all(6)
    newcomer = job.started[-1]
    assert newcomer == "node-4", "one is asked for once the job trains again"
    job.join(newcomer)
    job.tell(Progress(2, 6, 6))
    assert not job.to("node-0", Stop)[1:]
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    for node in job.members():
        job.tell(Held(node, 2, 1, 6))
    for rank in range(6):
        job.tell(RankHalted(job.members()[rank // 2], 2, rank, 7, True, job.now))
    job.tell(Progress(2, 7, 7))
    assert job.coordinator.generation == 3
    assert job.members() == ["node-0", "node-2", "node-3", newcomer]
    held = {snapshot(7, 2): WHOLE}
    for node in job.members():
        job.stopped(node, None if node == newcomer else held)
    form = job.forms()[newcomer]
    assert (form.position, form.origin.position, form.origin.snapshot, form.origin.nodes) == (3, -1, snapshot(7, 2), 3)
    grown = job.coordinator.incidents[-1]
    assert (grown.cause.kind, grown.steps_lost) == ("grown", 0)
    job.tell(StateCertified("node-0", 3, CERTIFIED))
    assert grown.certificate == CERTIFIED


def test_nobody_is_taken_in_while_nothing_of_the_present_size_is_safe() -> None:
    job = just_shrunk()
    job.tell(Progress(2, 6, None))
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    assert not job.coordinator.halting.under_way, "all would stand still for the memory of their first snapshot"
    job.tell(Progress(2, 6, 6))
    assert job.coordinator.halting.under_way


def test_nobody_waits_for_long_for_snapshots_that_are_rare() -> None:
    job = just_shrunk()
    job.tell(Tick(), after=FIRST_SNAPSHOT_SECONDS - 1.0)
    assert not job.coordinator.halting.under_way
    assert job.coordinator.next_deadline() == job.now + 1.0
    job.tell(Tick(), after=1.0)
    assert job.coordinator.halting.under_way


def just_shrunk() -> Job:
    """Three of four train again, and a fourth one has come."""
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.step_all(6)
    job.join(job.started[-1])
    return job


def test_newcomers_are_taken_in_together() -> None:
    job = training(3, elastic(2, 5, hosts=True))
    job.come("host-3")
    job.now += GROW_AFTER_SECONDS / 2
    job.come("host-4")
    job.tell(Tick(), after=GROW_AFTER_SECONDS / 2 + 0.1)
    assert not job.coordinator.halting.under_way, "the second one has just come"
    job.tell(Tick(), after=GROW_AFTER_SECONDS / 2)
    assert job.coordinator.halting.under_way


def training(hosts: int, wanted: JobConfig) -> Job:
    """So many hosts have come, and have made a step."""
    job = Job(wanted)
    for number in range(hosts):
        job.come(f"host-{number}")
    job.tell(Tick(), after=LAST_CALL_SECONDS)
    job.stop_all()
    job.step_all()
    job.tell(Progress(1, 0, 0))
    return job


def growing() -> Job:
    """Two hosts train, a third one has come, and they are asked to hold."""
    job = training(2, elastic(2, 3, hosts=True))
    job.come("host-2")
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    return job


def test_a_node_that_never_answers_does_not_hold_the_others_again_and_again() -> None:
    job, waits = growing(), list[float]()
    for step in range(1, 5):
        job.tell(Progress(1, step, step))
        job.tell(Tick(), after=HOLD_SECONDS)
        due = job.coordinator.next_deadline()
        assert due is not None
        waits.append(due - job.now)
        job.tell(Tick(), after=waits[-1])
    assert waits == pytest.approx([RETRY_SECONDS * 2**n for n in range(4)], abs=0.1)


def test_newcomers_that_cannot_be_taken_in_are_tried_less_and_less_often_and_that_is_told_once() -> None:
    """Memory is short, say, so that no rank can capture one step more: each attempt costs all of them a pause."""
    job = growing()
    waits, told = list[float](), len(job.news)
    for attempt in range(1, 12):
        assert [hold.attempt for hold in job.to("node-0", Hold)][-1] == attempt
        for rank in range(2):
            job.tell(Held(f"node-{rank}", 1, attempt, attempt))
        job.tell(RankHalted("node-1", 1, 1, attempt + 1, False, job.now))
        due = job.coordinator.next_deadline()
        assert due is not None
        waits.append(due - job.now)
        job.tell(Tick(), after=waits[-1] - 1.0)
        assert not job.coordinator.halting.under_way
        job.tell(Tick(), after=1.0)
    assert waits == pytest.approx([RETRY_SECONDS * 2 ** min(n, DOUBLINGS_MAX) for n in range(11)], abs=0.1)
    assert len(job.news) == told + 1
    assert "rank 1 could not capture step 2" in job.news[-1]

    job.tell(RankHalted("node-1", 1, 1, 99, False, job.now))
    job.tell(Tick(), after=RETRY_SECONDS)
    assert not job.coordinator.halting.under_way
    job.tell(Progress(1, 99, 0))
    assert job.coordinator.halting.under_way, "somebody has made room: a newer snapshot is sealed"

    job.tell(RankHalted("node-1", 1, 1, 100, False, job.now))
    job.tell(CordonNode("node-1", "its fan is loud", Leave.SOON))
    job.tell(Tick(), after=RETRY_SECONDS)
    assert job.coordinator.halting.under_way, "who wants a node drained does not wait for that"


def test_a_job_begins_with_the_least_after_a_last_call() -> None:
    job = Job(elastic(2, 4, hosts=True))
    job.come("a")
    assert job.coordinator.next_deadline() == pytest.approx(job.now + job.config.host_wait_seconds, abs=1.0)
    job.come("b")
    assert job.coordinator.next_deadline() == pytest.approx(job.now + LAST_CALL_SECONDS)
    job.tell(Tick(), after=LAST_CALL_SECONDS)
    assert job.coordinator.phase is Phase.STOPPING
    job.stop_all()
    assert sorted(form.position for form in job.forms().values()) == [0, 1]


def test_where_memory_is_too_small_for_fewer_nodes_that_is_said() -> None:
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.tell(ArenaShort("node-2", 2, 300 << 20, 200 << 20))
    assert job.coordinator.exit_code == EXIT_USAGE
    assert "the snapshots need 300 MiB, 200 MiB are free" in job.coordinator.exit_message
    assert job.coordinator.exit_message.endswith("4 nodes needed less each than 3: --nnodes could have a larger MIN")


def test_with_too_few_nodes_for_the_parity_it_is_less_and_that_is_told_once() -> None:
    job = Job(elastic(1, 2))
    running(job)
    lose_one(job, "node-1")
    assert job.forms()["node-0"].work.parity == 0
    assert [text for text in job.news if "parity" in text] == ["warning: 1 node can carry parity 0 only, not 1"]
    assert job.coordinator.parity == 0


def test_it_may_wait_before_it_shrinks() -> None:
    job = Job(elastic(shrink_after_seconds=20.0))
    running(job)
    lose_one(job, "node-1")
    assert job.coordinator.phase is Phase.STOPPING
    assert job.started[-1] == "node-4", "meanwhile another one is asked for"
    job.tell(Tick(), after=20.0)
    assert len(job.forms()) == 3


def test_a_node_that_comes_in_time_takes_over_the_position() -> None:
    job = Job(elastic(shrink_after_seconds=20.0))
    running(job)
    lose_one(job, "node-1")
    job.join("node-4")
    job.stopped("node-4")
    form = job.forms()["node-4"]
    assert (form.position, form.restore, form.origin) == (1, snapshot(5), None)


WRITTEN = DurableId(4, "file:///c/step-00000004", 8)


def with_storage(wanted: JobConfig) -> JobConfig:
    work = msgspec.structs.replace(wanted.work, durable=Durable(url="file:///c", every=10))
    return msgspec.structs.replace(wanted, work=work)


def test_a_checkpoint_of_another_number_of_ranks_is_re_sharded() -> None:
    job = Job(with_storage(elastic(hosts=True)))
    for host in ("a", "b", "c"):
        job.come(host)
    job.tell(Tick(), after=LAST_CALL_SECONDS)
    job.stop_all()
    job.stopped("node-0", durable=DurableSearch(WRITTEN))
    form = job.forms()["node-1"]
    assert (form.durable_start, form.restore, form.origin) == (WRITTEN, None, None)
    told = "generation 1: 3 nodes, 6 ranks, after step 4, re-sharded, from file:///c/step-00000004"
    assert told in job.news


def test_with_its_memory_gone_it_goes_on_with_fewer_nodes_from_storage() -> None:
    job = Job(with_storage(elastic()))
    job.gather()
    job.stop_all()
    job.stopped("node-0", durable=DurableSearch(WRITTEN))
    job.step_all()
    for node in ("node-1", "node-2"):
        job.lose(node)
    job.stop_all({snapshot(5, 1): WHOLE})
    assert job.to("node-0", Stop)[-1].search_durable
    job.stopped("node-0", durable=DurableSearch(WRITTEN))
    form = job.forms()["node-3"]
    assert (form.durable_start, form.origin, len(form.peers)) == (WRITTEN, None, 2)
    [incident] = job.coordinator.incidents
    assert incident.decision == "goes on with 2 nodes (4 ranks); state of step 4 is re-sharded"
    assert (incident.resumed_from, incident.steps_lost) == (4, 1)


# A state that cannot be certified.


def refuse(job: Job) -> None:
    """A rank of the newest generation says so, and rank 0 what it found."""
    formed = job.coordinator.formed
    found = msgspec.structs.replace(CERTIFIED, findings=("model.weight: replicas are not equal",))
    job.tell(StateCertified(job.members()[0], formed, found))
    for node in job.members():
        job.tell(Trouble(node, formed, "not_certified", "NotCertified: model.weight: replicas are not equal"))


def shrunk(wanted: JobConfig) -> Job:
    """One node was lost; the rest starts from step 5, and has step 4 as well."""
    job = Job(wanted)
    job.gather()
    job.stop_all()
    if wanted.work.durable is not None:
        job.stopped("node-0", durable=DurableSearch())
    job.step_all()
    job.tell(Progress(1, 5, 5))
    job.lose("node-1")
    answer_all(job, 4, 5)
    return job


def answer_all(job: Job, *versions: int) -> None:
    """All have stopped, and hold these snapshots of generation 1."""
    for node in job.members():
        held = tuple(Holding(snapshot(v, slot=v % 3), int(node[-1]), *WHOLE) for v in versions)
        generation = job.coordinator.generation
        job.tell(Stopped(node=node, generation=generation, inventory=Inventory(held), store_port=7))


def test_if_a_state_cannot_be_certified_the_older_one_is_taken() -> None:
    job = shrunk(elastic())
    form = job.forms()["node-2"]
    assert (form.origin.snapshot.version, form.older.snapshot.version) == (5, 4)
    assert (form.origin.position, form.older.position) == (2, 2)
    refuse(job)
    answer_all(job, 4, 5)
    form = job.forms()["node-2"]
    assert (form.generation, form.origin.snapshot.version, form.older, form.origin.position) == (3, 4, None, 2)
    lost, refused = job.coordinator.incidents
    assert (lost.certificate, refused.cause.kind) == (None, "not_certified")
    assert refused.refused.findings == ("model.weight: replicas are not equal",)
    assert (refused.doubtful, refused.resumed_from) == (5, 4)
    assert job.news[-1].endswith("after step 4, re-sharded (that of step 5 could not be certified)")
    job.tell(StateCertified("node-0", 3, CERTIFIED))
    assert refused.certificate == CERTIFIED


def test_the_same_step_captured_again_may_be_started_from() -> None:
    job = shrunk(elastic())
    refuse(job)
    answer_all(job, 4, 5)
    job.step_all()
    job.tell(Progress(3, 5, 5))
    job.exit(0, signal=9)
    for position, node in enumerate(job.members()):
        held = (Holding(snapshot(5, 3, 1), position, *WHOLE),)
        job.tell(Stopped(node=node, generation=4, inventory=Inventory(held), store_port=7))
    assert job.forms()["node-2"].restore == snapshot(5, 3, 1)


def test_where_none_is_left_the_job_ends_with_one_line_and_never_begins_anew() -> None:
    job = shrunk(elastic())
    for left in ((4, 5), (4,)):
        refuse(job)
        answer_all(job, *left)
    assert job.coordinator.exit_code == EXIT_LOST
    assert job.coordinator.exit_message == (
        "the state of step 4 could not be certified, and no older one is in memory "
        "(NotCertified: model.weight: replicas are not equal)."
    )


def test_memory_that_is_short_after_a_shrink_is_told_and_ends_nothing() -> None:
    job = shrunk(elastic())
    job.tell(ArenaShort("node-2", 2, 300 << 20, 200 << 20, goes_on=True))
    assert job.coordinator.exit_message == ""
    assert "warning: too little shared memory on node-2: the snapshots need 300 MiB, 200 MiB are free" in job.news[-1]


def test_then_what_is_older_on_storage_is_taken() -> None:
    job = shrunk(with_storage(elastic()))
    job.coordinator.durable.newest = 5  # of the same state
    for left in ((4, 5), (4,)):
        refuse(job)
        answer_all(job, *left)
    [*_, stop] = job.to("node-0", Stop)
    assert (stop.search_durable, stop.search_below) == (True, 4)
    job.stopped("node-0", durable=DurableSearch(DurableId(2, "file:///c/step-00000002", 8)))
    assert job.forms()["node-2"].durable_start.step == 2
    refuse(job)
    answer_all(job)
    [*_, stop] = job.to("node-0", Stop)
    assert (stop.search_durable, stop.search_below) == (True, 2)
    job.stopped("node-0", durable=DurableSearch())
    assert job.coordinator.exit_code == EXIT_LOST
    assert job.coordinator.exit_message.endswith("There is no complete checkpoint in file:///c.")


def test_a_world_is_the_same_if_nobody_moved() -> None:
    assert is_same(["a", "b"], ["a", "b"])
    assert is_same(["a", "b"], ["c", "b"])
    assert is_same(["a", "b"], [None, "b"])
    assert not is_same(["a", "b"], ["b", "a"])
    assert not is_same(["a", "b", "c"], ["a", "c"])
    assert not is_same([], ["a"])


def test_a_snapshot_belongs_to_the_world_of_its_generation() -> None:
    worlds = Worlds()
    worlds.begin(place(["", ""], 1, first=1, elastic=True))
    worlds.begin(place([""], 1, first=4, elastic=True))
    found = [worlds.of(snapshot(9, generation)) for generation in (1, 3, 4, 7)]
    assert [world.nodes for world in found if world is not None] == [2, 2, 1, 1]


def test_labels_of_failure_domains_may_leave_less_parity() -> None:
    assert place(["r1", "r1", "r1"], 2, first=1, elastic=True).parity == 0
    with pytest.raises(PlacementImpossible):
        place(["r1", "r1", "r1"], 2, first=1, elastic=False)


def test_a_fixed_job_is_told_nothing_of_other_worlds() -> None:
    job = Job(config(nodes=3, spares=1))
    job.run()
    job.tell(Progress(1, 5, 5))
    job.lose("node-1")
    job.stop_all({snapshot(5): DATA, snapshot(4): WHOLE})
    form = job.forms()["node-3"]
    assert isinstance(form, Form)
    assert (form.restore, form.origin, form.position) == (snapshot(4), None, 1)


# Numbers of nodes that are no mesh.


PAIRS = Misfit(4, True, "a mesh of tp=4 needs a multiple of 4 ranks")
"""With two ranks a node: two or four nodes."""


def refuse_size(job: Job, misfit: Misfit = PAIRS) -> None:
    """Every rank of the newest generation finds that it has no mesh."""
    for rank in list(job.coordinator.ranks):
        error = f"ftrain.errors.MeshImpossible: {misfit.reason}, the job has {len(job.coordinator.ranks)}"
        job.exit(rank, failure=Failure(None, error, "Traceback", communication=False, misfit=misfit))


def paired(wanted: JobConfig | None = None) -> Job:
    """One of four was lost, three were no mesh, and two have the newest snapshot of the four."""
    job = Job(wanted or elastic())
    running(job)
    lose_one(job, "node-1")
    old = {peer.node: peer.position for peer in job.forms()["node-0"].origin.holders}
    refuse_size(job)
    assert job.coordinator.generation == 3, "all ranks say it, and one generation follows"
    for node in job.members():
        answer_as(job, node, old[node])
    return job


def test_where_three_are_no_mesh_two_go_on_and_the_third_one_is_a_spare_whose_memory_is_read() -> None:
    job = paired()
    assert job.coordinator.positions == ["node-0", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE
    forms = job.forms()
    assert {node: form.position for node, form in forms.items()} == {"node-0": 0, "node-2": 1, "node-3": -1}
    assert {peer.node: peer.position for peer in forms["node-0"].origin.holders} == {
        "node-0": 0,
        "node-2": 2,
        "node-3": 3,
    }
    assert [forms[n].origin.position for n in ("node-0", "node-2", "node-3")] == [0, 2, 3]
    assert (forms["node-0"].origin.snapshot, forms["node-0"].work.parity) == (snapshot(5), 1)
    _, misfit = job.coordinator.incidents
    assert misfit.cause.reason == f"so many ranks are no mesh ({PAIRS.reason})"
    assert (misfit.decision, misfit.steps_lost) == ("goes on with 2 nodes (4 ranks); state of step 5 is re-sharded", 0)
    assert job.replayed().positions == job.coordinator.positions


def test_what_is_known_to_be_no_mesh_is_not_formed_again_and_the_job_grows_to_what_is() -> None:
    job = paired()
    job.step_all(6)
    job.tell(Progress(3, 6, 6))
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    assert not job.coordinator.halting.under_way, "three are here"
    job.join(job.started[-1])
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    job.halt(7)
    job.stop_all({snapshot(7, 3): WHOLE})
    assert job.members() == ["node-0", "node-2", "node-3", "node-4"]
    job.step_all(8)
    job.tell(Progress(4, 8, 8))
    job.lose("node-2")
    for position, node in enumerate(["node-0", "", "node-3", "node-4"]):
        if node:
            share = Holding(snapshot(8, 4), position, *WHOLE)
            job.tell(Stopped(node=node, generation=5, inventory=Inventory((share,)), store_port=7))
    assert job.members() == ["node-0", "node-3"], "at once"
    form = job.forms()["node-4"]
    assert (form.position, form.origin.position, form.origin.snapshot) == (-1, 3, snapshot(8, 4))


def test_a_loss_before_anything_of_the_two_is_safe_is_made_good_from_the_spare() -> None:
    job = paired()
    job.lose("node-0")
    assert job.members() == ["node-3", "node-2"], "the spare takes over"
    answer_as(job, "node-3", 3)
    answer_as(job, "node-2", 2)
    assert job.coordinator.exit_code == EXIT_LOST, "two of four are gone, with parity 1"


def test_the_spare_is_a_spare_once_something_of_the_two_is_safe() -> None:
    job = paired()
    job.step_all(6)
    job.tell(Progress(3, 6, 6))
    job.lose("node-0")
    answer = {snapshot(6, 3): WHOLE}
    assert job.members() == ["node-3", "node-2"]
    job.stopped("node-3")
    job.stopped("node-2", answer)
    form = job.forms()["node-3"]
    assert (form.position, form.restore, form.origin) == (0, snapshot(6, 3), None)


def test_where_a_larger_number_would_be_a_mesh_the_job_waits_for_it() -> None:
    job = training(3, elastic(3, 4, hosts=True))
    refuse_size(job)
    job.stop_all({snapshot(0): WHOLE})
    assert job.coordinator.phase is Phase.STOPPING
    assert f"waiting for a host: 1 of 4 are missing ({PAIRS.reason})" in job.news
    job.come("host-3")
    job.stopped("node-3")
    assert len(job.forms()) == 4


def test_a_mesh_without_a_free_dimension_has_one_number_of_ranks() -> None:
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    refuse_size(job, Misfit(8, False, "a mesh of dp=2 x tp=4 needs 8 ranks"))
    job.stop_all({snapshot(5): WHOLE})
    assert job.coordinator.phase is Phase.STOPPING
    job.join(job.started[-1])
    job.stopped(job.started[-1])
    assert len(job.forms()) == 4


def test_a_mesh_that_no_number_of_nodes_fits_is_the_programs_fault() -> None:
    job = Job(elastic())
    job.gather()
    job.stop_all()
    for _ in range(2):
        refuse_size(job, Misfit(5, True, "a mesh of tp=5 needs a multiple of 5 ranks"))
        job.stop_all()
    assert job.coordinator.exit_code == EXIT_PROGRAM
    assert "MeshImpossible: a mesh of tp=5 needs a multiple of 5 ranks, the job has 8" in job.coordinator.exit_message


def test_a_drain_without_a_spare_leaves_a_mesh() -> None:
    job = paired()
    job.step_all(6)
    job.join(job.started[-1])
    job.tell(Progress(3, 6, 6))
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    job.halt(7)
    job.stop_all({snapshot(7, 3): WHOLE})
    job.step_all(8)
    job.tell(CordonNode("node-0", "its fan is loud", Leave.SOON))
    job.halt(9)
    job.stop_all({snapshot(9, 4): WHOLE})
    assert job.members() == ["node-2", "node-3"]
    assert job.coordinator.nodes["node-0"].state is NodeState.CORDONED
    assert job.coordinator.nodes["node-4"].state is NodeState.IDLE
    forms = job.forms()
    assert {peer.node for peer in forms["node-2"].origin.holders} == {"node-2", "node-3", "node-4"}


@pytest.mark.parametrize("lost", ["node-0", "node-3"])
def test_a_node_left_over_counts_where_most_of_them_decide(lost: str) -> None:
    job = Job(elastic(candidates=("a:1", "b:2")))
    running(job)
    left = [node for node in job.members() if node != lost]
    lose_one(job, lost)
    old = {peer.node: peer.position for peer in job.forms()[left[0]].origin.holders}
    refuse_size(job)
    for node in left:
        answer_as(job, node, old[node])
    assert job.members() == left[:2]
    assert job.coordinator.phase is Phase.RUNNING
    assert not job.coordinator._candidates.are_too_few(job.coordinator._formed)


def test_a_node_left_over_that_is_away_for_a_moment_is_waited_for_before_the_state_is_given_up() -> None:
    job = paired()
    job.leave("node-3")
    job.exit(0, signal=9)
    answer_as(job, "node-0", 0)
    answer_as(job, "node-2", 2)
    assert job.coordinator.phase is Phase.STOPPING
    job.join("node-3")
    assert job.forms()["node-3"].origin.position == 3
    assert job.members() == ["node-0", "node-2"]


def test_positions_that_are_no_mesh_are_given_up_at_once() -> None:
    job = Job(elastic(shrink_after_seconds=20.0))
    running(job)
    lose_one(job, "node-1")
    job.tell(Tick(), after=20.0)
    refuse_size(job)
    for node, position in (("node-0", 0), ("node-2", 2), ("node-3", 3)):
        answer_as(job, node, position)
    assert job.members() == ["node-0", "node-2"]


def test_a_job_that_begins_with_a_number_that_is_no_mesh_begins_anew_with_one_that_is() -> None:
    job = Job(elastic(2, 3))
    job.gather()
    job.stop_all()
    refuse_size(job)
    job.stop_all()
    assert job.coordinator.positions == ["node-0", "node-1"]
    assert (job.forms()["node-0"].restore, job.forms()["node-0"].origin, len(job.forms())) == (None, None, 2)
    job.step_all()
    assert job.started == ["node-0", "node-1", "node-2"], "the spare is one, no other is asked for"
    job.lose("node-1")
    job.stop_all({snapshot(5, 2): WHOLE})
    assert job.coordinator.positions == ["node-0", "node-2"]

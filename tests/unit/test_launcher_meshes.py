"""Numbers of nodes that are no mesh of the script's: the job shrinks and grows to those that are."""

from __future__ import annotations

import pytest
from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import answer_as, elastic, lose_one, running, training

from ftrain.link import Misfit
from ftrain_launcher.from_agent import Failure, Stopped
from ftrain_launcher.job.events import CordonNode, JobConfig, Leave, Progress, Tick
from ftrain_launcher.job.growth import GROW_AFTER_SECONDS
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_LOST, EXIT_PROGRAM
from ftrain_snapshot.inventory import Holding, Inventory

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
    assert misfit.cause.reason == f"so many ranks do not fit ({PAIRS.reason})"
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


def test_newcomers_that_the_global_batch_has_no_samples_for_are_spares() -> None:
    """Two of 2:4 nodes train, and two more are taken in: eight ranks are too many for a batch of six, and six go on."""
    job = training(2, elastic(hosts=True))
    for number in (2, 3):
        job.come(f"host-{number}")
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    job.halt(1)
    job.stop_all({snapshot(1): WHOLE})
    assert len(job.members()) == 4
    old = {peer.node: peer.position for peer in job.forms()[job.members()[0]].origin.holders}
    refuse_size(job, Misfit(6, False, "a global batch of 6 samples is for 6 ranks at most", at_most=True))
    for node in job.members():
        shares = (Holding(snapshot(1), old[node], *WHOLE),) if node in old else ()
        job.tell(Stopped(node=node, generation=3, inventory=Inventory(shares), store_port=7))
    assert len(job.members()) == 3
    assert {form.origin.snapshot for form in job.forms().values()} == {snapshot(1)}
    assert job.coordinator.incidents[-1].steps_lost == 0
    job.step_all(2)
    job.tell(Progress(3, 2, 2))
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    assert not job.coordinator.halting.under_way, "the fourth is a spare"
    assert job.coordinator.generation == 3


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
    assert {peer.node for peer in forms["node-2"].origin.holders} == {"node-0", "node-2", "node-3", "node-4"}
    assert (forms["node-0"].position, forms["node-0"].origin.snapshot) == (-1, snapshot(9, 4))
    assert job.coordinator.reads("node-0")
    job.step_all(10)
    job.tell(Progress(5, 10, 9))
    assert job.coordinator.reads("node-0")
    job.tell(Progress(5, 10, 10))
    assert not job.coordinator.reads("node-0")


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

"""A job of MIN to MAX nodes goes on with those that are left, from memory or from storage."""

from __future__ import annotations

from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import WRITTEN, answer_as, elastic, lose_one, running, with_storage

from ftrain_launcher.from_agent import ArenaShort, DurableSearch
from ftrain_launcher.job.events import LAST_CALL_SECONDS, Tick
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_LOST, EXIT_USAGE
from ftrain_launcher.to_agent import Stop


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


def test_too_many_losses_end_the_job_and_do_not_begin_it_anew() -> None:
    job = Job(elastic(1, 4))
    running(job)
    lose_one(job, "node-1")
    for node in ("node-0", "node-2"):
        job.lose(node)
    answer_as(job, "node-3", 3)
    assert job.end is None
    assert job.coordinator.exit_code == EXIT_LOST
    assert "It started from what 4 nodes captured, by their positions: Snapshot 5" in job.coordinator.exit_message
    assert "the data of positions 0, 1 and 2 are missing, and parity 1" in job.coordinator.exit_message


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

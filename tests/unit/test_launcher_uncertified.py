"""What follows if a state that another number of nodes captured cannot be certified."""

from __future__ import annotations

import msgspec
from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import CERTIFIED, elastic, with_storage

from ftrain_launcher.from_agent import ArenaShort, DurableSearch, StateCertified, Stopped, Trouble
from ftrain_launcher.job.events import JobConfig, Progress
from ftrain_launcher.job.policy import EXIT_LOST
from ftrain_launcher.to_agent import Stop
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.storage import DurableId


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

"""The durable tier in the coordinator: what is written, what becomes of it, and starts from storage."""

from __future__ import annotations

import msgspec
import pytest
from simulation.checkers import state_of
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain_launcher.control import views
from ftrain_launcher.from_agent import DurableEnded, DurableSearch, Trouble
from ftrain_launcher.job.durable import SETTLE_SECONDS, WRITER_END_SECONDS
from ftrain_launcher.job.events import ControllerRestarted, Progress, Tick
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_LOST
from ftrain_launcher.to_agent import Stop, Unpin, WriteDurable
from ftrain_launcher.work import Durable
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId

URL = "/checkpoints"
NINE = snapshot(9)
FOUND = DurableSearch(DurableId(9, f"{URL}/step-00000009"))
NOTHING = DurableSearch()
MEMBERS = ("node-0", "node-1", "node-2")


def new_job(nodes: int = 3) -> Job:
    plain = config(nodes=nodes)
    work = msgspec.structs.replace(plain.work, durable=Durable(url=URL, every=10, write_timeout_seconds=100.0))
    return Job(msgspec.structs.replace(plain, work=work))


def form(job: Job, found: DurableSearch = NOTHING) -> None:
    """All stop with nothing in memory; position 0 looks at the storage."""
    job.stop_all()
    assert job.to("node-0", Stop)[-1].search_durable
    job.stopped("node-0", durable=found)


@pytest.fixture
def job() -> Job:
    job = new_job()
    job.gather()
    form(job)
    job.step_all()
    job.sent.clear()
    return job


def report(job: Job, pinned: SnapshotId | None = None, *, sealed: int | None = 10, in_flight: bool = False) -> None:
    job.tell(Progress(job.coordinator.formed, sealed, sealed, pinned, in_flight))


def ended(job: Job, position: int, failure: str = "", written: SnapshotId = NINE) -> None:
    job.tell(DurableEnded(f"node-{position}", job.coordinator.formed, position, written, failure))


def told(job: Job, kind: type[WriteDurable | Unpin]) -> list[str]:
    """The nodes that were told, and nothing is told of any other snapshot."""
    assert all(m.snapshot == NINE for _, m in job.sent if isinstance(m, kind))
    return [node for node, message in job.sent if isinstance(message, kind)]


# ---- writing


def test_what_is_pinned_is_written_by_all_and_let_go_when_position_0_is_done(job: Job) -> None:
    report(job, NINE)
    report(job, NINE)
    assert told(job, WriteDurable) == list(MEMBERS)
    for position in (1, 2):
        ended(job, position)
    assert not told(job, Unpin)
    ended(job, 0)
    assert told(job, Unpin) == list(MEMBERS)
    assert job.news[-1] == "the durable checkpoint of step 9 is written"
    assert views.status(job.coordinator, {}, 1)["snapshots"]["durable"] == 9
    shown = views.status(job.coordinator, {}, 1)["durable"]
    assert shown == {"url": URL, "newest": 9, "writing": None, "failure": None}


def test_an_unpin_that_was_not_heard_is_said_again(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    job.sent.clear()
    report(job, NINE)
    assert told(job, Unpin) == list(MEMBERS)
    assert not told(job, WriteDurable)


@pytest.mark.parametrize("position", [0, 2])
def test_one_failure_ends_the_write_and_training_goes_on(job: Job, position: int) -> None:
    report(job, NINE)
    ended(job, position, "no space left")
    ended(job, 0)
    assert told(job, Unpin) == list(MEMBERS)
    assert job.news[-1] == f"the durable checkpoint of step 9 is not written: node-{position}: no space left"
    assert job.coordinator.durable.newest is None
    assert views.status(job.coordinator, {}, 1)["durable"]["failure"] == f"step 9: node-{position}: no space left"
    assert job.coordinator.phase is Phase.RUNNING
    assert job.coordinator.generation == 1


def test_the_next_one_is_tried_after_a_failure(job: Job) -> None:
    report(job, NINE)
    ended(job, 1, "no space left")
    job.sent.clear()
    report(job, snapshot(19))
    assert [node for node, m in job.sent if m == WriteDurable(snapshot(19))] == list(MEMBERS)
    ended(job, 0, written=snapshot(19))
    assert job.coordinator.durable.newest == 19
    assert not job.coordinator.durable.failure


def test_a_writer_that_hangs_is_given_up(job: Job) -> None:
    report(job, NINE)
    job.tell(Tick(), 100.0 + WRITER_END_SECONDS - 1.0)
    assert not told(job, Unpin)
    assert job.coordinator.next_deadline() == pytest.approx(job.now + 1.0, abs=0.1)
    job.tell(Tick(), 1.0)
    assert told(job, Unpin) == list(MEMBERS)
    assert "it took too long" in job.news[-1]


def test_another_pin_waits_for_the_write_that_is_under_way(job: Job) -> None:
    """The gate's daemon was restarted and has pinned anew."""
    report(job, NINE)
    report(job, snapshot(14))
    assert told(job, WriteDurable) == list(MEMBERS)
    ended(job, 1, "it cannot be read any more")
    job.sent.clear()
    report(job, snapshot(14))
    assert len([m for _, m in job.sent if m == WriteDurable(snapshot(14))]) == 3


def test_an_agent_that_comes_back_is_told_again(job: Job) -> None:
    report(job, NINE)
    job.sent.clear()
    job.leave("node-1")
    job.join("node-1", generation=1, stopped=1)
    assert told(job, WriteDurable) == ["node-1"]


def test_a_new_generation_knows_nothing_of_the_old_ones_writes(job: Job) -> None:
    report(job, NINE)
    job.exit(1, signal=9)
    assert job.coordinator.durable.writing is None
    job.stop_all({NINE: WHOLE})
    assert job.forms()["node-0"].restore == NINE
    job.sent.clear()
    job.tell(DurableEnded("node-0", 1, 0, NINE, ""))  # of the old one
    assert job.coordinator.durable.newest is None
    report(job, NINE)
    assert told(job, WriteDurable) == list(MEMBERS)


def test_the_gate_hears_what_is_on_storage_already(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    job.exit(1, signal=9)
    job.stop_all({NINE: WHOLE})
    assert job.forms()["node-0"].durable_newest == 9
    assert job.forms()["node-0"].durable_start is None


def test_a_new_controller_takes_the_write_up(job: Job) -> None:
    report(job, NINE)
    assert state_of(job.replayed()) == state_of(job.coordinator)
    job.tell(ControllerRestarted())
    for node in MEMBERS:
        job.join(node, generation=1, stopped=1)
    ended(job, 0)
    assert job.coordinator.durable.newest == 9


def test_of_the_snapshots_in_memory_only_the_one_on_storage_is_durable(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    held = Inventory((Holding(snapshot(8, slot=1), 0, True, True), Holding(NINE, 0, True, True)))
    seen = {"node-0": views.Observation(inventory=held)}
    shown = views.snapshots(job.coordinator, seen, job.now)["snapshots"]
    assert [(s["version"], s["level"]) for s in shown] == [(9, "durable"), (8, "protected")]


# ---- starting


def test_a_job_starts_from_the_newest_checkpoint_and_says_so() -> None:
    job = new_job()
    job.gather()
    form(job, FOUND)
    assert {m.durable_start for m in job.forms().values()} == {FOUND.newest}
    assert {m.restore for m in job.forms().values()} == {None}
    assert f"after step 9, from {URL}/step-00000009" in job.news[-2]
    assert job.news[-1] == "to begin anew instead, give --durable another URL"
    assert views.levels(job.coordinator, {}).durable == 9


def test_storage_that_does_not_answer_at_the_start_ends_the_job() -> None:
    job = new_job()
    job.gather()
    form(job, DurableSearch(failure=f"--durable {URL}: no answer within 30 s"))
    assert job.coordinator.exit_code == EXIT_LOST
    assert job.coordinator.exit_message == f"it is not known where to start: --durable {URL}: no answer within 30 s"


def test_memory_is_preferred_to_storage(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    job.exit(1, signal=9)
    job.stop_all({snapshot(12): WHOLE})
    assert job.forms()["node-0"].restore == snapshot(12)
    assert not job.to("node-0", Stop)[-1].search_durable


def test_storage_that_does_not_answer_later_is_not_needed_where_nothing_was_written(job: Job) -> None:
    job.exit(1, signal=9)
    job.stop_all()
    job.stopped("node-0", durable=DurableSearch(failure="no answer"))
    assert job.coordinator.phase is Phase.RUNNING
    assert job.forms()["node-0"].durable_start is None


def lose_two(job: Job, newest_sealed: int = 12) -> None:
    """Memory is gone: parity 1 covers one of them."""
    job.lose("node-1")
    job.lose("node-2")
    job.stopped("node-0", {snapshot(newest_sealed, slot=1): WHOLE})
    for node in job.started[-3:]:
        if node not in MEMBERS and job.coordinator.nodes[node].connection is None:
            job.join(node)
    for node in job.members()[1:]:
        job.stopped(node)


def test_when_memory_is_gone_the_job_goes_on_from_storage(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    lose_two(job)
    assert job.coordinator.phase is Phase.STOPPING
    assert job.to("node-0", Stop)[-1].search_durable
    job.stopped("node-0", {snapshot(12, slot=1): WHOLE}, durable=FOUND)
    assert {m.durable_start for m in job.forms().values()} == {FOUND.newest}
    assert job.coordinator.incidents[-1].steps_lost == 3
    assert job.coordinator.incidents[-1].resumed_from == 9
    assert job.coordinator.levels.sealed is None


def test_a_fault_before_the_next_snapshot_goes_back_to_storage_again(job: Job) -> None:
    test_when_memory_is_gone_the_job_goes_on_from_storage(job)
    job.exit(0, signal=9)
    job.stop_all()
    job.stopped("node-0", durable=FOUND)
    assert {m.durable_start for m in job.forms().values()} == {FOUND.newest}
    assert job.coordinator.incidents[-1].steps_lost == 0


def test_a_node_lost_while_the_storage_is_looked_at_changes_nothing(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    lose_two(job)
    job.lose("node-0")
    job.join(job.started[-1])
    for node in job.members():
        job.stopped(node)
    first = job.members()[0]
    assert job.to(first, Stop)[-1].search_durable
    job.stopped(first, durable=FOUND)
    assert {m.durable_start for m in job.forms().values()} == {FOUND.newest}
    assert job.coordinator.incidents[-1].steps_lost == 3


def test_memory_gone_before_anything_was_written_is_an_honest_end(job: Job) -> None:
    report(job)
    lose_two(job)
    assert job.coordinator.exit_code == EXIT_LOST
    assert f"Nothing was written to {URL} yet." in job.coordinator.exit_message


def test_memory_gone_and_nothing_on_storage_is_an_honest_end(job: Job) -> None:
    report(job, NINE)
    ended(job, 0)
    lose_two(job)
    job.stopped("node-0", durable=NOTHING)
    assert job.coordinator.exit_code == EXIT_LOST
    assert f"There is no complete checkpoint in {URL}." in job.coordinator.exit_message


# ---- the end


def finish(job: Job) -> None:
    for rank in job.coordinator.ranks:
        job.exit(rank, code=0, finished=True)


def test_the_job_waits_for_what_is_due_of_its_last_steps(job: Job) -> None:
    finish(job)
    report(job, in_flight=True)
    report(job, in_flight=True)
    assert job.coordinator.phase is Phase.RUNNING
    report(job, NINE)
    assert job.news[-1] == "training is finished; waiting for the durable checkpoint of step 9"
    ended(job, 1)
    report(job, NINE)
    assert job.coordinator.phase is Phase.RUNNING
    ended(job, 0)
    report(job)
    assert job.coordinator.phase is Phase.ENDING
    assert (job.coordinator.exit_code, job.coordinator.exit_message) == (0, "training finished")


def test_the_first_report_after_the_last_step_may_be_older_than_it(job: Job) -> None:
    finish(job)
    report(job)
    assert job.coordinator.phase is Phase.RUNNING
    report(job)
    assert job.coordinator.phase is Phase.ENDING


def test_a_silent_gate_does_not_keep_a_finished_job(job: Job) -> None:
    finish(job)
    job.tell(Tick(), SETTLE_SECONDS)
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.exit_code == 0


@pytest.mark.parametrize("fault", ["node", "store"])
def test_a_fault_after_the_last_step_costs_the_last_checkpoint_and_no_more(job: Job, fault: str) -> None:
    finish(job)
    report(job, NINE)
    if fault == "node":
        job.lose("node-2")
    else:
        job.tell(Trouble("node-0", 1, "store_lost", ""))
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.exit_code == 0
    assert "before the last checkpoint was written" in job.coordinator.exit_message
    assert job.coordinator.next_deadline() is not None


def test_a_job_without_storage_ends_at_once() -> None:
    job = Job()
    job.run()
    finish(job)
    assert job.coordinator.phase is Phase.ENDING
    assert views.status(job.coordinator, {}, 1)["durable"] is None

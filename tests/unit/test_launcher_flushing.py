"""A flush: the ranks stop after one step, it goes to storage, the job ends with 0; or the time is over before."""

from __future__ import annotations

import msgspec
import pytest
from unit.coordinator_job import DATA, WHOLE, Job, config, snapshot

from ftrain_launcher.control.views import flush
from ftrain_launcher.engine_messages import FlushJob, HostLeaves
from ftrain_launcher.from_agent import DurableEnded, DurableSearch
from ftrain_launcher.job.events import Progress, Tick
from ftrain_launcher.job.flushing import ASK_SECONDS, WRITES_MAX
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_NOT_FLUSHED
from ftrain_launcher.to_agent import Form, GoOn, Hold, PinDurable, Shutdown, WriteDurable
from ftrain_launcher.work import Durable

SECONDS = 60.0
STEP = 41
WRITTEN = snapshot(STEP)


def running(*, durable: bool = True, parity: int = 1, nodes: int = 3) -> Job:
    asked = config(nodes=nodes, parity=parity)
    storage = Durable(url="s3://b/run", every=100) if durable else None
    job = Job(msgspec.structs.replace(asked, work=msgspec.structs.replace(asked.work, durable=storage)))
    job.gather()
    job.stop_all()
    if durable:  # position 0 was asked what is on storage
        job.stopped(job.members()[0], durable=DurableSearch())
    job.step_all()
    job.sent.clear()
    return job


def end_of(job: Job) -> tuple[int, str]:
    """All agents leave, and the job is over."""
    for name, node in job.coordinator.nodes.items():
        if node.connection is not None and not node.gone:
            job.leave(name)
    assert job.end is not None
    return job.end.exit_code, job.end.message


def test_all_ranks_stop_after_one_step_it_is_written_and_the_job_ends_well() -> None:
    job = running()
    job.tell(FlushJob("ftrain flush", SECONDS))
    assert job.news[-1] == "ftrain flush: the job ends within 60 s, after a whole step"
    job.halt(STEP)
    assert [m.version for m in job.to("node-0", PinDurable)] == [STEP]
    job.tell(Progress(1, STEP, STEP, pinned=WRITTEN))
    assert job.to("node-1", WriteDurable)
    for position, node in reversed(list(enumerate(job.members()))):
        assert job.coordinator.phase is Phase.RUNNING
        job.tell(DurableEnded(node, 1, position, WRITTEN, ""))
    assert all(job.to(node, Shutdown) for node in job.members())
    assert end_of(job) == (0, f"flushed at step {STEP}: on storage in s3://b/run")
    view = flush(job.replayed())
    assert (view["step"], view["protected"], view["durable"], view["exit_code"]) == (STEP, STEP, STEP, 0)


@pytest.mark.parametrize(("parity", "kept"), [(1, "protected"), (0, "sealed")])
def test_without_storage_it_ends_once_the_step_is_as_safe_as_memory_is(parity: int, kept: str) -> None:
    job = running(durable=False, parity=parity)
    job.tell(FlushJob("SIGTERM", SECONDS))
    job.halt(STEP)
    assert end_of(job) == (0, f"flushed at step {STEP}: {kept}, in memory that ends with the job (no --durable)")


def test_the_gate_is_told_again_what_to_pin_until_it_does() -> None:
    job = running()
    job.tell(FlushJob("SIGTERM", SECONDS))
    job.halt(STEP)
    job.tell(Tick(), after=ASK_SECONDS + 0.1)
    assert len(job.to("node-0", PinDurable)) == 2


def test_what_cannot_be_written_is_tried_with_other_steps_then_it_is_said_and_the_exit_code_is_another() -> None:
    job = running()
    job.tell(FlushJob("SIGTERM", SECONDS))
    for step in range(STEP, STEP + WRITES_MAX):
        assert job.end is None
        job.halt(step)
        job.tell(Progress(1, step, step, pinned=snapshot(step)))
        job.tell(DurableEnded("node-1", 1, 1, snapshot(step), "no space left"))
    code, message = end_of(job)
    assert code == EXIT_NOT_FLUSHED
    assert message == (
        f"not flushed: stopped after {step}, which was not written: step {step}: node-1: no space left "
        f"(newest step: sealed {step}, protected {step}, durable none)"
    )


def test_ranks_that_do_not_stop_in_time_are_ended_and_what_was_reached_is_said() -> None:
    job = running()
    job.tell(Progress(1, 30, 29))
    job.tell(FlushJob("SIGTERM", SECONDS))
    assert job.to("node-0", Hold)
    due = job.coordinator.flushing.next_deadline()
    assert due is not None
    assert job.now + SECONDS / 2 < due < job.now + SECONDS, "the end takes a while, too"
    job.tell(Tick(), after=due - job.now)
    code, message = end_of(job)
    assert code == EXIT_NOT_FLUSHED
    assert "did not come to the end of a step (newest step: sealed 30, protected 29, durable none)" in message


def test_a_fault_on_the_way_is_recovered_from_and_the_flush_begun_anew() -> None:
    job = running()
    job.tell(FlushJob("SIGTERM", SECONDS))
    job.halt(STEP)
    job.exit(1, signal=9)
    job.stop_all({WRITTEN: DATA})
    assert job.forms()
    job.sent.clear()
    job.step_all()
    job.halt(STEP + 2)
    assert [m.version for m in job.to("node-0", PinDurable)] == [STEP + 2]
    assert job.coordinator.flushing.step == STEP + 2


def test_the_more_urgent_of_two_wishes_counts() -> None:
    job = running()
    job.tell(FlushJob("ftrain flush", 600.0))
    job.tell(FlushJob("SIGTERM", SECONDS))
    job.tell(FlushJob("ftrain flush", 600.0))
    due = job.coordinator.flushing.next_deadline()
    assert due is not None
    assert due < job.now + SECONDS


def test_a_job_that_has_not_begun_ends_at_once() -> None:
    job = Job()
    job.tell(FlushJob("SIGTERM", SECONDS))
    job.gather()
    assert end_of(job) == (0, "SIGTERM: ended before the first step")


def test_a_host_that_leaves_gives_its_ranks_away_and_is_let_go_once_the_job_runs_without_it() -> None:
    job = running(durable=False)
    job.tell(HostLeaves("node-1", "its host is to be switched off"))
    job.halt(STEP)
    assert job.reaped == []
    job.stop_all({WRITTEN: WHOLE})
    job.stopped("node-3")
    assert job.to("node-3", Form)
    assert job.reaped == ["node-1"]
    assert job.coordinator.nodes["node-1"].state is NodeState.RELEASED
    assert job.coordinator.phase is Phase.RUNNING
    assert job.coordinator.incidents[0].steps_lost == 0


def test_a_spare_that_leaves_goes_at_once() -> None:
    job = running(durable=False)
    job.tell(HostLeaves("node-3", "its host is to be switched off"))
    assert job.reaped == ["node-3"]
    assert not job.to("node-0", Hold)
    assert not job.to("node-0", GoOn)

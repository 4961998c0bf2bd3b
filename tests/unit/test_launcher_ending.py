"""How a job ends: programs that fail again and again, and ranks that are done."""

from __future__ import annotations

import pytest
from unit.coordinator_job import BOTH, WHOLE, Job, config, raised, snapshot

from ftrain_launcher.engine_messages import StopJob
from ftrain_launcher.from_agent import ArenaShort
from ftrain_launcher.job.events import EndJob, Tick
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_NO_PROGRESS, EXIT_PROGRAM, EXIT_USAGE
from ftrain_launcher.to_agent import Shutdown


def test_the_same_exception_twice_at_the_same_step_ends_the_job(job: Job) -> None:
    for generation in (1, 2):
        assert job.coordinator.formed == generation
        job.exit(1, failure=raised("ValueError: boom"), step=5)
        job.exit(0, failure=raised("RuntimeError: gloo", communication=True), step=5)
        job.stop_all(BOTH)
    for node in list(job.coordinator.nodes):
        job.leave(node)
    assert job.end is not None
    assert job.end.exit_code == EXIT_PROGRAM
    assert "rank 1 on node-1 raised ValueError: boom after step 5" in job.end.message
    assert job.news.count("Traceback of ValueError: boom") == 1


@pytest.mark.parametrize("first", [0, 1])
def test_who_ends_without_an_error_in_the_middle_is_named_and_not_who_misses_it(job: Job, first: int) -> None:
    accounts = [
        lambda: job.exit(1, code=0, step=5),
        lambda: job.exit(2, failure=raised("RuntimeError: gloo", communication=True), step=5),
    ]
    for again in (False, True):
        accounts[first]()
        accounts[1 - first]()
        job.stop_all(BOTH)
        assert job.coordinator.phase is (Phase.ENDING if again else Phase.RUNNING)
    for incident in job.coordinator.incidents:
        assert incident.cause is not None
        assert [suspect.rank for suspect in incident.cause.suspects] == [1]
    assert job.coordinator.exit_code == EXIT_PROGRAM


def test_a_lost_node_between_two_equal_exceptions_does_not_hide_them(job: Job) -> None:
    job.exit(1, failure=raised("ValueError: boom"), step=5)
    job.stop_all(BOTH)
    job.lose("node-2")
    job.stop_all(BOTH)
    job.exit(1, failure=raised("ValueError: boom"), step=5)
    job.stop_all(BOTH)
    assert (job.coordinator.phase, job.coordinator.exit_code) == (Phase.ENDING, EXIT_PROGRAM)


def test_exit_code_3_twice_names_rank_and_code(job: Job) -> None:
    for _ in range(2):
        job.exit(2, code=3, step=7)
        job.stop_all(BOTH)
    assert job.coordinator.exit_code == EXIT_PROGRAM
    assert "rank 2 on node-2 exited with code 3 after step 7" in job.coordinator.exit_message


def test_sigkill_twice_at_the_same_step_is_no_program_error(job: Job) -> None:
    for _ in range(3):
        job.exit(2, signal=9, step=5)
        job.stop_all(BOTH)
    assert job.coordinator.phase is Phase.RUNNING
    assert job.coordinator.generation == 4


def test_faults_are_counted_only_while_there_is_no_progress() -> None:
    job = Job(config(max_restarts=2))
    job.run()
    for version in range(10):
        job.exit(0, signal=9)
        job.stop_all({snapshot(version): WHOLE})
    for _ in range(2):
        assert job.coordinator.phase is Phase.RUNNING
        job.exit(0, signal=9)
        job.stop_all({snapshot(9): WHOLE})
    assert job.coordinator.exit_code == EXIT_NO_PROGRESS
    assert "3 faults in a row without progress (--max-restarts 2)" in job.coordinator.exit_message


def test_a_store_that_never_starts_counts_as_faults_without_progress() -> None:
    job = Job(config(max_restarts=2))
    job.gather()
    for _ in range(3):
        for node in job.members():
            job.stopped(node, port=None)
    job.stop_all()
    assert job.coordinator.exit_code == EXIT_NO_PROGRESS
    assert "its store did not start" in job.coordinator.exit_message


def test_too_little_shared_memory_ends_the_job_with_both_figures(job: Job) -> None:
    job.tell(ArenaShort("node-1", 1, 300 * 2**20, 64 * 2**20))
    assert job.coordinator.exit_code == EXIT_USAGE
    assert "need 300 MiB, 64 MiB are free" in job.coordinator.exit_message


def test_the_job_is_done_when_all_ranks_are(job: Job) -> None:
    for rank in range(3):
        assert not job.to("node-0", Shutdown)
        job.exit(rank, code=0, finished=True)
    for node in list(job.coordinator.nodes):
        assert job.end is None
        job.leave(node)
    assert job.end == EndJob(0, "training finished")


def test_ctrl_c_asks_everybody_and_waits_for_them(job: Job) -> None:
    job.tell(StopJob("stopped by SIGINT", 130))
    assert {node for node, m in job.sent if isinstance(m, Shutdown)} == {f"node-{n}" for n in range(4)}
    job.tell(Tick(), after=job.coordinator.next_deadline() - job.now)  # type: ignore[operator]
    assert job.end == EndJob(130, "stopped by SIGINT")
    assert set(job.reaped) == {f"node-{n}" for n in range(4)}


def test_ctrl_c_before_any_node_has_come_ends_at_once() -> None:
    job = Job()
    job.tell(StopJob("stopped by SIGINT", 130))
    assert job.end == EndJob(130, "stopped by SIGINT")
    assert job.reaped == job.started


def test_the_last_worker_finishes_while_another_fails(job: Job) -> None:
    job.exit(0, code=0, finished=True)
    late = job.exit_of(1, code=0, finished=True)
    job.exit(2, signal=9)
    job.tell(late)
    job.stop_all(BOTH)
    assert len(job.forms()) == 3  # All begin again: those that had finished find that nothing is left to do.
    for rank in range(3):
        job.exit(rank, code=0, finished=True)
    assert job.coordinator.exit_code == 0
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.incidents[-1].closed


def test_a_node_whose_ranks_have_finished_is_not_missed(job: Job) -> None:
    job.exit(1, code=0, finished=True)
    job.lose("node-1")
    assert job.coordinator.phase is Phase.RUNNING
    job.exit(0, code=0, finished=True)
    job.exit(2, code=0, finished=True)
    assert job.coordinator.exit_message == "training finished"


def test_a_crash_after_the_training_function_returned_is_no_fault(job: Job) -> None:
    job.exit(0, signal=11, finished=True)
    assert job.coordinator.ranks[0].finished

"""What is seen and what it means; incidents and their log."""

from __future__ import annotations

import signal
from itertools import permutations

import pytest
from unit.coordinator_job import raised

from ftrain_launcher.job.causes import Blame, Sign, Suspect, classify, describe
from ftrain_launcher.job.incidents import INCIDENTS_KEPT, IncidentLog


def exited(rank: int, time: float = 1.0, **how: object) -> Sign:
    return Sign(kind="worker_exit", node=f"node-{rank}", rank=rank, pid=100 + rank, time=time, step=5, **how)


LOST = Sign(kind="node_lost", node="node-0", time=9.0, reason="killed")
KILLED = exited(1, 2.0, signal=signal.SIGKILL)
STORE = Sign(kind="store_lost", node="node-0", time=3.0)
RAISED = exited(2, 4.0, failure=raised("ValueError: boom"))
ABORTED = exited(3, 1.0, signal=signal.SIGABRT)
GLOO = exited(4, 0.5, failure=raised("RuntimeError: gloo", communication=True))
MISFIT = Sign(kind="misfit", node="node-4", time=9.5, reason="a mesh of tp=2 needs a multiple of 2 ranks")
BY_WEIGHT = [LOST, KILLED, STORE, RAISED, ABORTED, MISFIT, GLOO]


@pytest.mark.parametrize("count", range(1, len(BY_WEIGHT) + 1))
def test_what_explains_most_is_the_cause_in_whatever_order_it_is_heard(count: int) -> None:
    signs = BY_WEIGHT[-count:]
    for order in list(permutations(signs))[:50]:
        cause = classify(order)
        assert [(s.node, s.rank) for s in cause.suspects] == [(signs[0].node, signs[0].rank)]


def test_all_lost_nodes_and_all_killed_workers_are_suspects() -> None:
    other = Sign(kind="node_lost", node="node-5", time=8.0)
    assert [s.node for s in classify([LOST, KILLED, other]).suspects] == ["node-5", "node-0"]
    assert [s.rank for s in classify([exited(3, 3.0, signal=9), KILLED, RAISED]).suspects] == [1, 3]


def test_who_ended_in_good_order_is_the_cause_only_where_others_miss_it_and_nothing_else_is() -> None:
    ended = exited(0, 0.1, code=0)
    for signs in permutations([ended, GLOO]):
        cause = classify(signs)
        assert [s.rank for s in cause.suspects] == [0]
        assert cause.reason == "rank 0 on node-0 exited with code 0 after step 5, before the others"
        assert cause.signature == "step 5: code 0"
    for other in BY_WEIGHT[:-1]:
        assert classify([ended, GLOO, other]).kind == other.kind
        assert classify([ended, GLOO, other]).suspects[0].rank == other.rank


@pytest.mark.parametrize(("waited_for", "cause"), [(0, "worker_exit"), (1, "hang")])
def test_who_is_waited_for_and_has_ended_does_not_hang(waited_for: int, cause: str) -> None:
    ended = exited(0, 0.9, code=0)
    hang = Sign(kind="hang", node="node-0", rank=waited_for, time=0.5, suspects=(Suspect("node-0", waited_for),))
    for signs in permutations([ended, GLOO, hang]):
        assert classify(signs).kind == cause
    assert classify([ended, hang, LOST]).kind == "node_lost"


def test_what_a_plain_scripts_log_says_of_a_lost_peer_explains_nothing_but_itself() -> None:
    """Without `resilient` an exception is known by its exit code and the end of the log."""

    def unlike(rank: int, error: str, time: float = 0.2) -> Sign:
        log = ("Traceback (most recent call last):", '  File "a.py", line 3, in <module>', error)
        return exited(rank, time, code=1, last_lines=tuple(f"[rank{rank}]: {line}" for line in log))

    lost = unlike(2, "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [::1]:1: Connection reset by peer")
    own, ended = unlike(1, "RuntimeError: no such sample", 0.7), exited(0, 0.1, code=0)
    for signs in permutations([lost, ended]):
        assert [s.rank for s in classify(signs).suspects] == [0]
    for signs in permutations([lost, ended, own]):
        assert [s.rank for s in classify(signs).suspects] == [1]
    assert classify([lost, ABORTED]).suspects[0].rank == 3
    assert classify([lost]).signature == "step 5: code 1", "alone it is not tried again for ever"


def test_of_a_script_whose_steps_are_unknown_nobody_says_that_it_always_ends_too_soon() -> None:
    ended = Sign(kind="worker_exit", node="node-0", rank=0, time=0.1, code=0)
    assert classify([ended, GLOO]).signature == ""


def test_what_a_library_said_before_it_aborted_is_quoted() -> None:
    aborted = exited(3, signal=signal.SIGABRT, last_lines=("terminate called", "what(): 24 vs 16"))
    assert describe(aborted) == "rank 3 on node-3 was killed by SIGABRT after step 5: what(): 24 vs 16"
    killed = exited(3, signal=signal.SIGKILL, last_lines=("loss 2.1",))
    assert describe(killed) == "rank 3 on node-3 was killed by SIGKILL after step 5"


def test_of_workers_that_raise_the_first_is_the_cause() -> None:
    cause = classify([RAISED, exited(3, 3.5, failure=raised("KeyError: 'x'"))])
    assert [s.rank for s in cause.suspects] == [3]
    assert cause.traceback == "Traceback of KeyError: 'x'"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (RAISED, exited(0, 7.0, failure=raised("ValueError: other text")), True),
        (RAISED, exited(2, 4.0, failure=raised("ValueError: boom", step=6)), False),
        (RAISED, exited(2, 4.0, failure=raised("KeyError: boom")), False),
        (exited(1, code=3), exited(2, code=3), True),
        (exited(1, code=3), exited(1, code=4), False),
        (exited(1, signal=signal.SIGSEGV), exited(1, signal=signal.SIGSEGV), True),
    ],
)
def test_failures_of_the_program_are_the_same_by_step_and_kind(one: Sign, other: Sign, same: bool) -> None:
    first, second = classify([one]).signature, classify([other]).signature
    assert first
    assert (first == second) is same


@pytest.mark.parametrize(
    "sign",
    [LOST, STORE, GLOO, KILLED, exited(1, signal=signal.SIGTERM), exited(1, code=128 + signal.SIGTERM), exited(1)],
)
def test_what_comes_from_outside_is_never_the_program(sign: Sign) -> None:
    assert classify([sign]).signature == ""


def test_a_keyboard_interrupt_is_the_programs_own_but_no_fault_of_its_node() -> None:
    cause = classify([exited(1, signal=signal.SIGINT)])
    assert cause.signature
    assert cause.blame is Blame.KILLED


def test_signs_read_as_sentences() -> None:
    assert describe(KILLED) == "rank 1 on node-1 was killed by SIGKILL after step 5"
    assert describe(exited(1, code=143)) == "rank 1 on node-1 was killed by SIGTERM after step 5"
    assert describe(exited(1, code=3)) == "rank 1 on node-1 exited with code 3 after step 5"
    assert describe(exited(1)) == "rank 1 on node-1 is gone after step 5"
    assert describe(exited(1, signal=99)) == "rank 1 on node-1 was killed by signal 99 after step 5"
    with_zygote = exited(1, signal=signal.SIGKILL, with_zygote=True)
    assert describe(with_zygote) == "rank 1 on node-1 died with its node's zygote after step 5"
    assert describe(LOST) == "node-0 is lost (killed)"
    assert describe(Sign(kind="new", node="node-0", time=0.0)) == "new on node-0"


def test_two_accounts_of_one_exit_are_merged() -> None:
    log = IncidentLog()
    log.take(exited(2, failure=raised("ValueError: boom")), 1)
    incident = log.take(exited(2, 2.0, code=1, failure=raised("ValueError: boom")), 1)
    assert [(s.code, s.time) for s in incident.signs] == [(1, 1.0)]
    assert incident.signs[0].failure is not None


def test_an_incident_is_detected_at_its_first_sign_even_if_that_is_understood_late() -> None:
    log = IncidentLog()
    log.take(KILLED, 1)
    incident = log.take(Sign(kind="node_lost", node="node-0", time=1.5), 1)
    assert incident.timeline.detected == 1.5


def test_what_breaks_after_the_job_was_formed_again_is_the_next_incident() -> None:
    log = IncidentLog()
    first = log.take(KILLED, 1)
    first.timeline.formed = 3.0
    second = log.take(exited(2, 4.0, signal=9), 2)
    assert (first.closed, first.seconds, second.number) == (True, None, 2)
    log.close(first_step=6.0)
    assert (second.closed, second.seconds) == (True, 2.0)


def test_a_harmless_fault_does_not_close_the_open_one() -> None:
    log = IncidentLog()
    first = log.take(KILLED, 1)
    log.record_harmless(Sign(kind="daemon_exit", node="node-3", time=3.0), 1)
    assert log.open is first
    assert [i.closed for i in log.entries] == [False, True]


def test_the_log_is_bounded_and_still_counts() -> None:
    log = IncidentLog()
    for n in range(INCIDENTS_KEPT + 10):
        log.record_harmless(Sign(kind="daemon_exit", node="node-0", time=float(n), reason=str(n)), 1)
    assert len(log.entries) == INCIDENTS_KEPT
    assert log.total == INCIDENTS_KEPT + 10

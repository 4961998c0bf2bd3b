"""Digests of replicas in, verdicts out."""

from __future__ import annotations

from ftrain.link import ReplicaDigest
from ftrain_launcher.detect.divergence import WAIT_SECONDS, Divergence
from ftrain_launcher.detect.verdict import Kind, Verdict

NODES = {rank: f"node{rank // 2}" for rank in range(8)}
REPLICAS = "parameters: 4 ranks from 0, 12ab"


def give(judge: Divergence, step: int, digests: list[int | None], now: float = 0.0) -> list[Verdict]:
    """One digest a rank; None: it does not come."""
    found = []
    for rank, digest in enumerate(digests):
        if digest is not None:
            found += judge.take(rank, step, [ReplicaDigest(REPLICAS, len(digests), digest)], now)
    return found


def test_equal_replicas_are_no_news() -> None:
    judge = Divergence(1, NODES)
    assert [give(judge, step, [step] * 4) for step in (0, 99, 199)] == [[], [], []]


def test_the_minority_is_named_once() -> None:
    judge = Divergence(3, NODES)
    give(judge, 0, [1, 1, 1, 1])
    (verdict,) = give(judge, 99, [7, 7, 5, 7])
    assert (verdict.kind, verdict.ranks, verdict.generation, verdict.step) == (Kind.DIVERGENCE, (2,), 3, 99)
    assert verdict.sentence == (
        "rank 2 on node1 has other parameters after step 99 than the 3 replicas that agree: silent corruption"
    )
    assert give(judge, 199, [8, 8, 6, 8]) == []
    assert [v.ranks for v in give(judge, 299, [8, 4, 6, 8, 8])] == [(1, 2)]


def test_it_is_named_at_the_first_look_too() -> None:
    (verdict,) = give(Divergence(1, NODES), 0, [7, 7, 5])
    assert (verdict.ranks, verdict.confidence) == ((2,), 0.7)
    assert verdict.sentence.endswith("silent corruption, or the program treats it otherwise")


def test_two_that_differ_are_not_told_apart() -> None:
    judge = Divergence(1, NODES)
    give(judge, 0, [1, 1])
    (verdict,) = give(judge, 99, [1, 2])
    assert (verdict.ranks, verdict.confidence) == ((), 0.5)
    assert "no majority" in verdict.sentence


def test_all_different_is_an_error_of_the_program() -> None:
    judge = Divergence(1, NODES)
    give(judge, 0, [1, 1, 1])
    (verdict,) = give(judge, 99, [1, 2, 3])
    assert verdict.details["cause"] == "program"
    assert "error of the program" in verdict.sentence


def test_replicas_that_never_were_equal_are_kept_apart_on_purpose() -> None:
    judge = Divergence(1, NODES)
    assert give(judge, 0, [1, 2, 3]) == []
    assert give(judge, 99, [4, 5, 6]) == []


def test_a_majority_of_all_decides_when_some_stay_silent() -> None:
    judge = Divergence(1, NODES)
    assert give(judge, 99, [7, 7, 5, 7, None]) == []
    assert judge.verdicts(WAIT_SECONDS - 0.1) == []
    (verdict,) = judge.verdicts(WAIT_SECONDS)
    assert verdict.ranks == (2,)


def test_without_a_majority_of_all_nothing_is_said() -> None:
    judge = Divergence(1, NODES)
    give(judge, 0, [1] * 5)
    assert give(judge, 99, [7, 7, 5, None, None]) == []
    assert judge.verdicts(WAIT_SECONDS) == []


def test_equal_again_and_different_again_is_told_again() -> None:
    judge = Divergence(1, NODES)
    rounds = [[1, 1, 1], [1, 1, 2], [1, 1, 1], [1, 1, 2]]
    assert [len(give(judge, step, digests)) for step, digests in enumerate(rounds)] == [0, 1, 0, 1]

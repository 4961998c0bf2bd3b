"""Digests of replicas in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence

from ftrain.link import ReplicaDigest
from ftrain_launcher.detect.divergence import WAIT_SECONDS, Divergence
from ftrain_launcher.detect.verdict import Kind, Verdict

NODES = {rank: f"node{rank // 2}" for rank in range(8)}
REPLICAS = "parameters: 4 ranks from 0, 12ab"


def give(judge: Divergence, step: int, digests: Sequence[int | None], now: float = 0.0) -> list[Verdict]:
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


# ---- plain tensors, of which nobody says who shares them

PLAIN = "parameters: plain tensors, 12ab"


def look(judge: Divergence, step: int, digests: Sequence[int]) -> list[Verdict]:
    """All ranks report; those of one pipeline stage have equal digests."""
    return [v for r, one in enumerate(digests) for v in judge.take(r, step, [ReplicaDigest(PLAIN, 0, one)], 0.0)]


def plain_judge(ranks: int) -> Divergence:
    return Divergence(1, {rank: f"node{rank // 2}" for rank in range(ranks)})


def test_of_three_that_went_on_equally_the_one_that_did_not_is_named_at_the_next_check() -> None:
    judge = plain_judge(6)
    assert look(judge, 0, [1, 1, 1, 2, 2, 2]) == []
    (verdict,) = look(judge, 99, [3, 3, 3, 4, 5, 4])
    assert (verdict.ranks, verdict.confidence) == ((4,), 0.7)
    assert look(judge, 199, [5, 5, 5, 6, 7, 6]) == [], "told already"
    (verdict,) = look(judge, 299, [7, 8, 7, 8, 9, 8])
    assert (verdict.ranks, verdict.confidence) == ((1,), 0.95)


def test_two_are_replicas_once_they_changed_equally_twice() -> None:
    judge = plain_judge(4)
    assert look(judge, 0, [1, 1, 2, 2]) + look(judge, 99, [3, 3, 4, 4]) + look(judge, 199, [5, 5, 6, 6]) == []
    (verdict,) = look(judge, 299, [7, 8, 9, 9])
    assert verdict.ranks == ()
    assert "ranks 0 on node0, 1 on node0 differ" in verdict.sentence
    other = plain_judge(2)
    assert look(other, 0, [1, 1]) + look(other, 99, [3, 3]) + look(other, 199, [5, 6]) == [], "it is not known yet"


def test_who_starts_equally_and_goes_apart_is_no_replica() -> None:
    """Local SGD between two averages; parts of a layer; tensors that are never trained."""
    for digests in ([3, 4, 5, 6], [3, 3, 4, 4], [1, 1, 1, 7]):
        judge = plain_judge(4)
        assert look(judge, 0, [1, 1, 1, 1]) + look(judge, 99, digests) == []
    judge = plain_judge(3)
    aligned = [look(judge, step, [step] * 3) for step in (0, 99, 199)]
    assert [*aligned, look(judge, 299, [1, 2, 3]), look(judge, 399, [4, 4, 5])] == [[]] * 5


def test_where_a_rank_says_nothing_nothing_is_made_of_it() -> None:
    judge = plain_judge(3)
    look(judge, 0, [1, 1, 1])
    judge.take(0, 99, [ReplicaDigest(PLAIN, 0, 2)], 0.0)
    judge.take(1, 99, [ReplicaDigest(PLAIN, 0, 3)], 0.0)
    assert judge.verdicts(WAIT_SECONDS) == []
    (verdict,) = look(judge, 199, [4, 4, 5])
    assert verdict.ranks == (2,)

"""Real replicas: what they tell of themselves, and what is made of it."""

from __future__ import annotations

from pathlib import Path

from integration.worker_node import Forker, Node
from jobs import PROGRAMS

from ftrain.link import Replicas
from ftrain_launcher.detect.divergence import Divergence
from ftrain_launcher.detect.verdict import Verdict

RANKS = 3
STEPS = 10
EVERY = 4


def told(forker: Forker, folder: Path, *arguments: object) -> list[list[Replicas]]:
    """What each rank's agent was told, in order; ranks differ in nothing but their digests."""
    with Node(forker, folder / "node", RANKS) as node:
        codes = node.run(PROGRAMS / "flip.py", "--out", folder, "--steps", STEPS, *arguments, check_replicas=EVERY)
        assert codes == [0] * RANKS, node.output(0)
        found = node.agent.of(Replicas)
    by_step = {step: [message for message in found if message.step == step] for step in (0, 3, 7)}
    assert sum(map(len, by_step.values())) == len(found)
    assert all(len(messages) == RANKS for messages in by_step.values())
    assert len({tuple((d.replicas, d.size) for d in message.digests) for message in by_step[7]}) == 1
    assert [d.replicas.partition(":")[0] for d in by_step[7][0].digests] == ["parameters", "optimizer state"]
    return list(by_step.values())


def judged(rounds: list[list[Replicas]]) -> list[Verdict]:
    """Which rank said it does not matter: an agent knows that by the line."""
    judge = Divergence(1, {})
    return [
        verdict
        for messages in rounds
        for rank, message in enumerate(messages)
        for verdict in judge.take(rank, message.step, message.digests, 0.0)
    ]


def test_replicas_that_train_stay_equal(forker: Forker, tmp_path: Path) -> None:
    rounds = told(forker, tmp_path)
    assert judged(rounds) == []
    assert all(len({message.digests for message in messages}) == 1 for messages in rounds)
    assert len({messages[0].digests for messages in rounds}) == len(rounds)


def test_a_flipped_bit_is_found_at_the_next_check(forker: Forker, tmp_path: Path) -> None:
    rounds = told(forker, tmp_path, "--rank", 1, "--step", 4)
    before, after = rounds[1], rounds[2]
    assert len({message.digests[0] for message in before}) == 1
    assert len({message.digests[0] for message in after}) == 2
    verdicts = judged(rounds)
    assert len({verdict.step for verdict in verdicts}) == 1
    assert verdicts[0].step == 7
    assert all(len(verdict.ranks) == 1 for verdict in verdicts)

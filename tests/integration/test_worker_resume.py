"""A resumed run is bit-identical to one that never failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.worker_node import Forker, Node
from integration.worker_states import assert_same

TRAIN = Path(__file__).with_name("worker_train.py")
RANKS = 3
"""With two, the order of reduction never matters."""


STEPS = 14


@pytest.fixture(scope="module")
def undisturbed(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What an undisturbed run of a variant leaves: a prefix of files."""
    known: dict[str, Path] = {}

    def prefix_of(variant: str) -> Path:
        if variant not in known:
            known[variant] = tmp_path_factory.mktemp(variant) / "undisturbed"
            with Node(forker, known[variant].with_name("node"), RANKS) as node:
                assert node.run(TRAIN, variant, STEPS, known[variant], -2) == [0] * RANKS, node.output(0)
        return known[variant]

    return prefix_of


def losses(prefix: Path, rank: int) -> list[Any]:
    lines = [json.loads(line) for line in Path(f"{prefix}.losses.{rank}").read_text().splitlines()]
    return [line for _, line in sorted({step: [step, loss] for step, loss in lines}.items())]


def test_without_the_layout_of_the_buckets_it_is_not(
    forker: Forker, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    """Given a resumed run whose buckets are left as DDP lays them out first, then the losses drift."""
    with Node(forker, tmp_path / "broken", RANKS) as node:
        run = partial(node.run, TRAIN, "unreplayed", STEPS, tmp_path / "resumed")
        assert run(6) == [-9] * RANKS, node.output(0)
        assert run(-2, restore=node.newest) == [0] * RANKS, node.output(0)
    assert losses(undisturbed("plain"), 0) != losses(tmp_path / "resumed", 0)


def compare(undisturbed: Path, resumed: Path) -> None:
    for rank in range(RANKS):
        assert losses(undisturbed, rank) == losses(resumed, rank)
        assert_same(torch.load(f"{undisturbed}.end.{rank}"), torch.load(f"{resumed}.end.{rank}"))


@pytest.mark.parametrize("variant", ["plain", "find_unused", "static_graph", "bucket_view", "accumulate", "two_models"])
def test_resumed_run_is_bit_identical(
    forker: Forker, tmp_path: Path, undisturbed: Callable[[str], Path], variant: str
) -> None:
    """Given a run whose ranks all die after step 0 and again after step 6, when resumed, then nothing tells."""
    with Node(forker, tmp_path / "broken", RANKS) as node:
        run = partial(node.run, TRAIN, variant, STEPS, tmp_path / "resumed")
        assert run(0) == [-9] * RANKS, node.output(0)
        # A static graph cannot be captured between its first backward and its second.
        first = node.newest if variant != "static_graph" else None
        assert first is None or first.version == 0
        assert run(6, restore=first) == [-9] * RANKS, node.output(0)
        assert node.newest.version == 6
        assert run(-2, restore=node.newest) == [0] * RANKS, node.output(0)
    compare(undisturbed(variant), tmp_path / "resumed")

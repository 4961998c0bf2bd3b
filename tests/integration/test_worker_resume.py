"""A resumed run is bit-identical to one that never failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.worker_node import Forker, Node

TRAIN = Path(__file__).with_name("worker_train.py")
RANKS = 4


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    forker = Forker()
    yield forker
    forker.close()


def losses(prefix: Path, rank: int) -> list[Any]:
    lines = [json.loads(line) for line in Path(f"{prefix}.losses.{rank}").read_text().splitlines()]
    return [line for _, line in sorted({step: [step, loss] for step, loss in lines}.items())]


def assert_same(left: Any, right: Any, path: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    else:
        assert left == right, path


def compare(undisturbed: Path, resumed: Path) -> None:
    for rank in range(RANKS):
        assert losses(undisturbed, rank) == losses(resumed, rank)
        assert_same(torch.load(f"{undisturbed}.end.{rank}"), torch.load(f"{resumed}.end.{rank}"))


@pytest.mark.parametrize("variant", ["plain", "find_unused", "static_graph", "bucket_view", "accumulate", "two_models"])
def test_resumed_run_is_bit_identical(forker: Forker, tmp_path: Path, variant: str) -> None:
    """Given a run whose ranks all die after step 0 and again after step 6, when resumed, then nothing tells."""
    total = 14
    whole = Node(forker, tmp_path / "whole", RANKS)
    assert whole.run(TRAIN, variant, total, tmp_path / "undisturbed", -2) == [0] * RANKS, whole.output(0)
    whole.close()

    broken = Node(forker, tmp_path / "broken", RANKS)
    assert broken.run(TRAIN, variant, total, tmp_path / "resumed", 0) == [-9] * RANKS, broken.output(0)
    restore = broken.newest if broken.daemon.sealed else None
    if variant != "static_graph":  # which cannot be captured between its first backward and its second
        assert restore is not None
        assert restore.version == 0
    assert broken.run(TRAIN, variant, total, tmp_path / "resumed", 6, restore=restore) == [-9] * RANKS, broken.output(0)
    assert broken.newest.version == 6
    assert broken.run(TRAIN, variant, total, tmp_path / "resumed", -2, restore=broken.newest) == [0] * RANKS, (
        broken.output(0)
    )
    broken.close()
    compare(tmp_path / "undisturbed", tmp_path / "resumed")

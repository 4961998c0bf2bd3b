"""Gradients, losses and parameters at changing world sizes, of real process groups (exact_ranks.py)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.exact_ranks import CHANGES, DATA, Net, loss_of
from integration.exact_result import result_of
from integration.worker_states import assert_same

from ftrain import ElasticSampler

RANKS = Path(__file__).with_name("exact_ranks.py")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return result_of(RANKS, tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("kind", ["ddp", "ddp-bfloat16", "fsdp", "fsdp-bfloat16"])
def test_four_three_four_ranks_end_bit_by_bit_as_four(result: Any, kind: str) -> None:
    undisturbed, changed = result[kind]
    assert [world for world, _ in CHANGES] == [4, 3, 4]
    assert len(undisturbed["losses"]) == CHANGES[-1][1]
    assert len({loss for loss, _ in undisturbed["losses"]}) == CHANGES[-1][1]
    assert min(norm for _, norm in undisturbed["losses"]) > 0.25  # all were clipped
    assert changed["losses"] == undisturbed["losses"]
    assert_same(changed["model"], undisturbed["model"])
    assert_same(changed["optimizer"], undisturbed["optimizer"])


def test_each_sample_counts_once_whatever_the_world(result: Any) -> None:
    sampler = ElasticSampler(len(DATA), global_batch=21, seed=3, rank=0, world_size=1)
    wanted = Counter(index for step in range(CHANGES[-1][1]) for index in sampler.batch(step))
    for undisturbed, changed in (result[kind] for kind in ("ddp", "fsdp")):
        assert Counter(undisturbed["seen"]) == Counter(changed["seen"]) == wanted


def test_ddp_and_fsdp_end_alike(result: Any) -> None:
    (ddp, _), (fsdp, _) = result["ddp"], result["fsdp"]
    assert_same(list(ddp["model"].values()), list(fsdp["model"].values()))


@pytest.mark.parametrize(
    ("way", "batch"), [(f"{kind} {n}", n) for kind in ("ddp", "fsdp", "hsdp") for n in (11, 4)] + [("scaled", 11)]
)
def test_gradients_are_the_mean_over_the_global_batch(result: Any, way: str, batch: int) -> None:
    torch.manual_seed(0)
    net = Net(dropout=0.0)
    sampler = ElasticSampler(len(DATA), global_batch=batch, rank=0, world_size=1)
    loss = loss_of(net, DATA[sampler.batch(0)])
    loss.backward()
    for got, parameter in zip(result["gradients"][way], net.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-5, atol=1e-7)
    if way != "scaled":
        assert result["gradients"][f"loss of {way}"] == pytest.approx(loss.item(), rel=1e-6)


def test_a_norm_counts_each_element_once_however_gradients_are_cut(result: Any) -> None:
    for norm, before, after in result["norms"].values():
        assert norm > 0.25
        assert norm == pytest.approx(before, rel=1e-6)
        assert after == pytest.approx(0.25, rel=1e-4)
    assert result["norms"]["fsdp-tp"][0] == pytest.approx(result["norms"]["fsdp"][0], rel=1e-5)


def test_summing_twice_in_a_step_is_refused(result: Any) -> None:
    assert "model.no_sync()" in result["gradients"]["refused"]


def test_gradients_that_do_not_come_to_the_sum_are_refused(result: Any) -> None:
    said = result["gradients"]["misuse"]
    assert "leave model.no_sync() to ctx.microbatches" in said["no_sync"]
    assert "leave set_requires_gradient_sync to ctx.microbatches" in said["no reduction"]
    assert "in some micro-batches of a step only" in said["a part"]

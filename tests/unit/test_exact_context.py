"""Exact batches as a script meets them, in a world of one."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

import ftrain
from ftrain import ElasticSampler, ElasticStream, ExactMisuse
from ftrain.context import Context
from ftrain.environment import WorkerEnvironment, read_environment

ROWS = torch.randn(23, 3, generator=torch.Generator().manual_seed(1))


class Script:
    """A training script's objects."""

    def __init__(self, *, deterministic: bool = False, **sampler: Any) -> None:
        environment = WorkerEnvironment(deterministic_reduction=deterministic)
        self.ctx = Context(environment, torch.device("cpu"), None)
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.sampler = ElasticSampler(len(ROWS), **{"global_batch": 7, "micro_batch": 2, **sampler})
        self.loader = DataLoader(ROWS, batch_sampler=self.sampler)
        self.ctx.track(model=self.model, sampler=self.sampler)

    def step(self) -> list[ftrain.MicroBatch]:
        seen = []
        for micro in self.ctx.microbatches(self.loader):
            self.ctx.scale_loss(self.model(micro.data).square().mean(), micro.samples).backward()
            seen.append(micro)
        return seen

    def wanted(self) -> torch.Tensor:
        fresh = nn.Linear(3, 1)
        fresh.load_state_dict(self.model.state_dict())
        fresh(ROWS[self.sampler.batch(0)]).square().mean().backward()
        assert fresh.weight.grad is not None
        return fresh.weight.grad


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_gives_the_gradient_and_the_loss_of_the_global_batch(deterministic: bool) -> None:
    script = Script(deterministic=deterministic)
    seen = script.step()
    assert [(micro.number, micro.samples) for micro in seen] == [(0, 2), (1, 2), (2, 2), (3, 1)]
    assert [index for micro in seen for index in micro.indices] == script.sampler.batch(0)
    assert script.sampler.position == 1
    torch.testing.assert_close(script.model.weight.grad, script.wanted())
    with torch.no_grad():
        loss = script.model(ROWS[script.sampler.batch(0)]).square().mean().item()
    assert script.ctx.global_loss() == pytest.approx(loss, rel=1e-6)


def test_gradients_are_clipped_as_torch_does() -> None:
    script, other = Script(), Script()
    for one in (script, other):
        one.step()
    norm = script.ctx.clip_grad_norm(0.1)
    assert norm == pytest.approx(nn.utils.clip_grad_norm_(other.model.parameters(), 0.1).item(), rel=1e-6)
    torch.testing.assert_close(script.model.weight.grad, other.model.weight.grad)
    script.model.zero_grad(set_to_none=False)
    assert script.ctx.clip_grad_norm(0.1) == 0.0
    assert script.model.bias.grad is not None
    script.model.bias.grad.fill_(torch.inf)
    assert math.isnan(script.ctx.clip_grad_norm(0.1))
    assert script.model.weight.grad is not None
    assert script.model.weight.grad.isnan().all()


def test_a_batch_of_its_own_is_scaled_as_well() -> None:
    script = Script(micro_batch=None)
    loss = script.model(ROWS[script.sampler.batch(0)]).square().mean()
    script.ctx.scale_loss(loss, 7).backward()
    torch.testing.assert_close(script.model.weight.grad, script.wanted())


def test_noise_belongs_to_the_step_and_the_micro_batch() -> None:
    script = Script()
    drawn: dict[Any, int] = {}
    for step in script.ctx.steps(2):
        drawn[step] = script.ctx.rng("dropout").seed
        for micro in script.ctx.microbatches(script.loader):
            drawn[step, micro.number] = script.ctx.rng("dropout").seed
            drawn[step, micro.number, "crop"] = script.ctx.rng("crop").seed
            drawn[step, "sample"] = script.ctx.rng("crop", sample=3).seed
    assert len(set(drawn.values())) == len(drawn) == 2 * (1 + 2 * 4 + 1)
    assert Script().ctx.rng("dropout").seed == drawn[0]


def test_a_stream_is_read_through_a_loader() -> None:
    script = Script()
    stream = ElasticStream([9] * 4, lambda shard, start: iter(ROWS[start:9]), global_batch=7, micro_batch=2)
    script.loader = DataLoader(stream, batch_size=None, collate_fn=default_collate)
    first = script.step()
    assert [micro.data.shape for micro in first] == [(2, 3), (2, 3), (2, 3), (1, 3)]
    assert stream.position == 1
    script.model.zero_grad()
    second = script.step()
    lane = list(islice(stream.read_from(0, 0), 4))
    assert torch.equal(torch.cat([first[0].data, second[0].data]), torch.stack(lane))


def test_what_would_not_be_exact_is_refused() -> None:
    script = Script()
    uncut = ElasticSampler(5, global_batch=2)
    of_three = ElasticSampler(5, global_batch=2, micro_batch=1, rank=0, world_size=3)
    stream = ElasticStream([9] * 4, lambda shard, start: iter(ROWS[start:9]), global_batch=7, micro_batch=2)
    for loader, complaint in [
        (DataLoader(ROWS, batch_size=2), "whose order is ours"),
        (DataLoader(ROWS, batch_sampler=uncut), "micro_batch=N"),
        (DataLoader(ROWS, batch_sampler=of_three), "3 ranks"),
        (DataLoader(ROWS, batch_sampler=script.sampler, num_workers=1, in_order=False), "in the order"),
        (DataLoader(stream), "batch_size=None"),
    ]:
        with pytest.raises(ExactMisuse, match=complaint):
            next(iter(script.ctx.microbatches(loader)))
    with pytest.raises(ExactMisuse, match="after a loop"):
        script.ctx.global_loss()
    script.step()
    with pytest.raises(ExactMisuse, match="zero_grad"):
        script.step()
    script.model.zero_grad(set_to_none=False)
    for _ in script.ctx.microbatches(script.loader):
        break
    with pytest.raises(ExactMisuse, match="left early"):
        script.step()


def test_a_context_without_a_model_or_a_batch_size_says_so() -> None:
    ctx = Context(WorkerEnvironment(), torch.device("cpu"), None)
    with pytest.raises(ExactMisuse, match=r"ctx\.track it first"):
        ctx.scale_loss(torch.zeros(()), 1)
    ctx.track(model=nn.Linear(1, 1))
    with pytest.raises(ExactMisuse, match="track the ElasticSampler"):
        ctx.scale_loss(torch.zeros(()), 1)


def test_the_bit_exact_mode_is_not_asked_for_in_vain() -> None:
    assert read_environment({"FTRAIN_DETERMINISTIC_REDUCTION": "1"}).deterministic_reduction
    assert not read_environment({}).deterministic_reduction
    script = Script(deterministic=True)
    with pytest.raises(ExactMisuse, match=r"needs ctx\.microbatches"):
        script.ctx.scale_loss(torch.zeros(()), 1)
    with pytest.raises(ExactMisuse, match="--deterministic-reduction"):
        script.ctx.commit(0)
    script.step()
    script.ctx.commit(0)


def test_a_sparse_gradient_is_refused_where_bits_matter() -> None:
    script = Script(deterministic=True)
    words = nn.Embedding(23, 3, sparse=True)
    script.ctx.track(words=words)
    loop = script.ctx.microbatches(script.loader)
    micro = next(loop)
    script.ctx.scale_loss(script.model(words(torch.tensor(micro.indices))).mean(), micro.samples).backward()
    with pytest.raises(ExactMisuse, match="sparse=False"):
        next(loop)


@pytest.mark.filterwarnings("ignore:'set_vital'")
def test_a_stateful_loader_serves_as_well() -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    script = Script()
    script.loader = loaders.StatefulDataLoader(ROWS, batch_sampler=script.sampler)
    seen = script.step()
    assert torch.equal(torch.cat([micro.data for micro in seen]), ROWS[script.sampler.batch(0)])
    assert script.loader.state_dict()
    assert script.sampler.position == 1

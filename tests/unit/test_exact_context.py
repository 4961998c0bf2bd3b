"""Exact batches as a script meets them, in a world of one."""

from __future__ import annotations

import fractions
import math
import warnings
from contextlib import nullcontext
from functools import partial
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
from ftrain.exact.limits import warn_of_limits
from ftrain.exact.models import Models

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
    with pytest.warns(UserWarning, match="ElasticStream of ctx.microbatches is not tracked"):
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
    with pytest.raises(ExactMisuse, match="left early"):
        script.ctx.commit(0)


def test_a_loss_that_was_not_weighed_is_told_of() -> None:
    script = Script()
    loop = script.ctx.microbatches(script.loader)
    for micro in islice(loop, 3):
        script.ctx.scale_loss(script.model(micro.data).square().mean(), micro.samples).backward()
    script.model(next(loop).data).square().mean().backward()
    with pytest.raises(ExactMisuse, match=r"1 of 4 micro-batches did not go through ctx\.scale_loss"):
        next(loop)


@pytest.mark.parametrize("samples", [0, -1, 3])
def test_a_loss_cannot_be_weighed_by_other_samples_than_its_micro_batch_has(samples: int) -> None:
    script = Script()
    micro = next(script.ctx.microbatches(script.loader))
    assert micro.samples == 2
    with pytest.raises(ExactMisuse, match=f"samples={samples} for a micro-batch that counts for 2"):
        script.ctx.scale_loss(script.model(micro.data).square().mean(), samples)


def test_loaders_of_one_sampler_take_over_from_each_other() -> None:
    script = Script()
    first, second = script.loader, DataLoader(ROWS, batch_sampler=script.sampler)
    for step, loader in enumerate([first, second, second, first]):
        for micro in script.ctx.microbatches(loader):
            assert torch.equal(micro.data, ROWS[list(micro.indices)])
        assert script.sampler.position == step + 1
    script.sampler.load_state_dict({**script.sampler.state_dict(), "position": 9})
    for micro in script.ctx.microbatches(first):
        assert torch.equal(micro.data, ROWS[script.sampler.indices(9, micro.number)])


def test_the_loss_is_rounded_once() -> None:
    script = Script(global_batch=6, micro_batch=3)
    losses = []
    for micro in script.ctx.microbatches(script.loader):
        losses.append(script.model(micro.data).square().mean())
        script.ctx.scale_loss(losses[-1], micro.samples).backward()
    assert script.ctx.global_loss() == sum(fractions.Fraction(loss.item()) for loss in losses) / 2


def test_statistics_across_ranks_are_refused_and_those_of_a_rank_told_of() -> None:
    script = Script()
    script.ctx.track(more=nn.Sequential(nn.SyncBatchNorm(3)))
    with pytest.raises(ExactMisuse, match="SyncBatchNorm"):
        script.step()
    script = Script(deterministic=True)
    script.ctx.track(more=nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.warns(UserWarning, match="running statistics"):
        script.step()
    script.model.zero_grad()
    script.step()  # told once


def test_noise_of_the_rank_is_told_of_once_where_bits_matter() -> None:
    def step(script: Script, *, keyed: bool) -> None:
        script.model.zero_grad()
        for micro in script.ctx.microbatches(script.loader):
            with script.ctx.rng("dropout") if keyed else nullcontext():
                noisy = nn.functional.dropout(micro.data, 0.5)
            script.ctx.scale_loss(script.model(noisy).square().mean(), micro.samples).backward()

    step(Script(), keyed=False)
    exact = Script(deterministic=True)
    step(exact, keyed=True)
    with pytest.warns(UserWarning, match=r"outside ctx\.rng"):
        step(exact, keyed=False)
    step(exact, keyed=False)


def test_optimizers_that_treat_the_ends_of_shards_apart_are_told_of() -> None:
    def warned(optimizer: torch.optim.Optimizer, sharded: tuple[Any, ...]) -> bool:
        models = Models(tuple(model.parameters()), (), (), sharded)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warn_of_limits([model, optimizer], models)
        return any("ends of FSDP2's shards" in str(one.message) for one in said)

    model = nn.Linear(3, 1)
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    assert warned(fused, (model,))
    assert not warned(fused, ())
    assert not warned(torch.optim.SGD(model.parameters()), (model,))
    model.bfloat16()
    assert warned(torch.optim.SGD(model.parameters()), (model,))


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


def test_a_loader_that_fetches_before_its_sampler_is_tracked_is_told_of_at_once() -> None:
    class FetchesAhead:
        _send_idx, _rcvd_idx = 0, 0

        def __init__(self, sampler: ElasticSampler) -> None:
            self._batches = iter(sampler)
            self._send_idx = len(self._next_index())

        def _next_index(self) -> list[int]:
            return next(self._batches)

    ctx = Context(WorkerEnvironment(), torch.device("cpu"), None)
    sampler = ElasticSampler(20, global_batch=8)
    FetchesAhead(sampler)
    with pytest.raises(ExactMisuse, match=r"call iter\(loader\) after ctx\.track"):
        ctx.track(sampler=sampler)


@pytest.mark.parametrize(
    ("deterministic", "change", "says"),
    [
        (False, "step", r"optimizer\.step\(\) in a loop"),
        (True, "step", r"optimizer\.step\(\) in a loop"),
        (False, "zero_grad", "changed in the loop"),
        (False, "zeros", "changed in the loop"),
        (True, "clip", "comes after the loop"),
    ],
)
def test_gradients_that_are_not_complete_are_not_used(deterministic: bool, change: str, says: str) -> None:
    script = Script(deterministic=deterministic)
    optimizer = torch.optim.SGD(script.model.parameters(), lr=0.1)
    script.ctx.track(optimizer=optimizer)
    loop = script.ctx.microbatches(script.loader)
    for micro in islice(loop, 2):
        script.ctx.scale_loss(script.model(micro.data).square().mean(), micro.samples).backward()
    micro = next(loop)
    if change in ("zero_grad", "zeros"):
        optimizer.zero_grad(set_to_none=change == "zero_grad")
    loss = script.model(micro.data).square().mean()
    uses = {"step": optimizer.step, "clip": partial(script.ctx.clip_grad_norm, 1.0)}
    with pytest.raises(ExactMisuse, match=says):
        uses.get(change, partial(script.ctx.scale_loss, loss, micro.samples))()


def test_a_parameter_that_no_tracked_model_has_is_told_of() -> None:
    script = Script()
    scale = nn.Parameter(torch.ones(2))
    script.ctx.track(optimizer=torch.optim.SGD([*script.model.parameters(), scale], lr=0.1))
    micro = next(script.ctx.microbatches(script.loader))
    loss = script.ctx.scale_loss((script.model(micro.data) * scale).mean(), micro.samples)
    with pytest.raises(ExactMisuse, match=r"shape \(2,\) that is no tracked model's"):
        loss.backward()


def test_a_norm_counts_both_parts_of_complex_gradients() -> None:
    script = Script()
    script.model.weight = nn.Parameter(script.model.weight.detach() + 1j)
    script.model.weight.grad = torch.tensor([[3 + 4j, 0, 12j]])
    assert script.ctx.clip_grad_norm(1.3) == 13.0
    torch.testing.assert_close(script.model.weight.grad, torch.tensor([[0.3 + 0.4j, 0, 1.2j]]))

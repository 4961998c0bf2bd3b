from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import ElasticSampler, ExactMisuse, StateMismatch


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5), st.integers(0, 3))
def test_each_epoch_holds_every_sample_once_at_any_world_size(length: int, batch: int, world: int, seed: int) -> None:
    ranks = [
        ElasticSampler(length, global_batch=batch, seed=seed, rank=rank, world_size=world) for rank in range(world)
    ]
    steps = -(-3 * length // batch)
    stream = [sample for step in range(steps) for sampler in ranks for sample in sampler.batch(step)]
    for epoch in range(3):
        assert sorted(stream[epoch * length : (epoch + 1) * length]) == list(range(length))
    sizes = [len(sampler.batch(0)) for sampler in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == batch


def test_the_stream_is_a_function_of_the_seed() -> None:
    one, same, other = (ElasticSampler(50, global_batch=10, seed=seed) for seed in (1, 1, 2))
    assert one.batch(3) == same.batch(3) != other.batch(3)
    assert one.batch(0) != one.batch(5)
    assert ElasticSampler(50, global_batch=10, shuffle=False).batch(6) == list(range(10, 20))


def test_iterating_goes_on_from_the_position() -> None:
    sampler = ElasticSampler(20, global_batch=8)
    batches = list(islice(sampler, 4))
    assert batches == [sampler.batch(index) for index in range(4)]
    assert (sampler.position, sampler.epoch, len(sampler)) == (4, 1, 3)
    assert next(iter(sampler)) == sampler.batch(4)


def test_the_state_is_the_position() -> None:
    sampler = ElasticSampler(20, global_batch=8, seed=4)
    list(islice(sampler, 3))
    fresh = ElasticSampler(20, global_batch=8, seed=4)
    fresh.load_state_dict(sampler.state_dict())
    assert next(iter(fresh)) == sampler.batch(3)
    with pytest.raises(StateMismatch, match="seed"):
        ElasticSampler(20, global_batch=8, seed=5).load_state_dict(sampler.state_dict())


def test_a_loader_without_workers_draws_as_it_hands_out() -> None:
    from torch.utils.data import DataLoader

    sampler = ElasticSampler(20, global_batch=8)
    batches = iter(DataLoader(list(range(20)), batch_sampler=sampler))
    assert next(batches).tolist() == sampler.batch(0)
    assert sampler.position == 1


def test_a_loader_of_more_ranks_than_samples_is_refused_on_all_of_them_unless_it_can_make_empty_batches() -> None:
    from torch.utils.data import DataLoader

    def first_batch(world: int, **more: Any) -> Any:
        sampler = ElasticSampler(20, global_batch=3, shuffle=False, rank=0, world_size=world)
        return next(iter(DataLoader(list(range(20)), batch_sampler=sampler, **more)))

    assert first_batch(3).tolist() == [0]
    with pytest.raises(ExactMisuse, match="global_batch=3 leaves some of 4 ranks without a sample"):
        first_batch(4)
    assert first_batch(4, collate_fn=list) == []


def test_a_loader_that_hands_out_batches_as_they_come_is_refused() -> None:
    class AsTheyCome:
        _next_index = None
        _in_order = False

        def first(self) -> list[int]:
            return next(iter(ElasticSampler(20, global_batch=8)))

    with pytest.raises(ExactMisuse, match="in_order=False"):
        AsTheyCome().first()


@pytest.mark.parametrize("wrong", [{"length": 0}, {"global_batch": 0}, {"rank": 1}])
def test_wrong_arguments_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ElasticSampler(**{"length": 3, "global_batch": 2, **wrong})

from __future__ import annotations

import weakref
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import ElasticSampler, ExactMisuse, StateMismatch
from ftrain.errors import BatchTooSmall
from ftrain.link import Misfit
from ftrain.outcome import describe_failure


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


def test_fewer_samples_than_ranks_are_refused_on_all_of_them() -> None:
    from torch.utils.data import DataLoader

    def sampler(rank: int, world: int) -> ElasticSampler:
        return ElasticSampler(20, global_batch=3, shuffle=False, rank=rank, world_size=world)

    assert next(iter(DataLoader(list(range(20)), batch_sampler=sampler(0, 3)))).tolist() == [0]
    for rank in range(4):
        for batches in (sampler(rank, 4), DataLoader(list(range(20)), batch_sampler=sampler(rank, 4))):
            with pytest.raises(ExactMisuse, match="global_batch=3 leaves some of 4 ranks without a sample"):
                next(iter(batches))
    assert [sampler(rank, 4).batch(0) for rank in range(4)] == [[], [0], [1], [2]]


def test_the_controller_is_told_for_how_many_ranks_a_global_batch_is() -> None:
    with pytest.raises(BatchTooSmall) as raised:
        next(iter(ElasticSampler(20, global_batch=3, rank=0, world_size=4)))
    needs = "a global batch of 3 samples is for 3 ranks at most"
    assert describe_failure(raised.value, None).misfit == Misfit(3, False, needs, at_most=True)


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


class FetchesAhead:
    """A loader's iterator with workers: it has asked for three batches more than it has handed out."""

    def __init__(self, sampler: ElasticSampler) -> None:
        self._batches, self._send_idx, self._rcvd_idx = iter(sampler), 0, 0
        for _ in range(3):
            self._next_index()

    def _next_index(self) -> list[int]:
        self._send_idx += 1
        return next(self._batches)

    def hand_out(self) -> None:
        self._next_index()
        self._rcvd_idx += 1


def test_what_a_loader_has_fetched_ahead_is_not_counted_when_its_loop_was_left_either() -> None:
    sampler = ElasticSampler(20, global_batch=8)
    loader = FetchesAhead(sampler)
    loader.hand_out()
    loader.hand_out()
    assert sampler.position == 2
    ended = weakref.ref(loader)
    del loader
    assert ended() is None  # it ends its workers now, and not at some time
    assert sampler.position == 2
    assert next(iter(sampler)) == sampler.batch(2)


def test_of_iterators_of_one_sampler_only_the_newest_goes_on() -> None:
    sampler = ElasticSampler(20, global_batch=8)
    first = iter(sampler)
    next(first)
    second = iter(sampler)
    assert next(second) == sampler.batch(1)
    with pytest.raises(ExactMisuse, match="a sampler for each loader"):
        next(first)
    sampler.load_state_dict({**sampler.state_dict(), "position": 7})
    assert next(second) == sampler.batch(7)  # it has not fetched ahead


def test_what_was_fetched_ahead_before_the_position_was_set_is_not_trained_on() -> None:
    sampler = ElasticSampler(20, global_batch=8)
    loader = FetchesAhead(sampler)
    sampler.load_state_dict({**sampler.state_dict(), "position": 7})
    with pytest.raises(ExactMisuse, match="fetched ahead"):
        loader.hand_out()
    assert next(iter(sampler)) == sampler.batch(7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"length": 10.5}, "length=10.5 and global_batch=4 must be positive whole numbers"),
        ({"global_batch": 0}, "global_batch=0 must be"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be one of world_size=2, counted from 0"),
        ({"rank": -1, "world_size": 2}, "rank=-1 must be"),
        ({"rank": 1}, "give both rank and world_size"),
        ({"seed": -1}, "seed=-1 must be a whole number, 0 or more"),
        ({"seed": None}, "seed=None must be"),
        ({"micro_batch": 2.0}, "micro_batch=2.0 must be a whole number, 1 to global_batch=4"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ElasticSampler(**{"length": 10, "global_batch": 4, **given})

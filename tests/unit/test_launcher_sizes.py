"""Which numbers of nodes a job may have."""

from __future__ import annotations

from ftrain.link import Misfit
from ftrain_launcher.job.sizes import Sizes

PAIRS = Misfit(2, True, "a mesh of tp=2 needs a multiple of 2 ranks")
THREES = Misfit(3, True, "a mesh of pp=3 needs a multiple of 3 ranks")


def usable(sizes: Sizes, most: int) -> list[int]:
    return [sizes.at_most(nodes) for nodes in range(most + 1)]


def test_from_the_least_on_every_number_will_do_until_something_is_said() -> None:
    sizes = Sizes(2, 4)
    assert (sizes.least, sizes.reason, usable(sizes, 5)) == (2, "", [0, 0, 2, 3, 4, 4])


def test_what_is_no_mesh_is_struck_off() -> None:
    sizes = Sizes(3, 8)
    assert sizes.strike_off(PAIRS, 1)
    assert (sizes.least, usable(sizes, 8)) == (4, [0, 0, 0, 0, 4, 4, 6, 6, 8])
    assert sizes.strike_off(PAIRS, 1), "the next rank says it, too"
    assert sizes.strike_off(THREES, 1)
    assert (sizes.least, usable(sizes, 8)) == (6, [0, 0, 0, 0, 0, 0, 6, 6, 6])
    assert sizes.reason == f"{PAIRS.reason}; {THREES.reason}"


def test_ranks_are_counted_and_not_nodes() -> None:
    sizes = Sizes(1, 4)
    assert sizes.strike_off(Misfit(8, True, "a mesh of tp=8 needs a multiple of 8 ranks"), 4)
    assert usable(sizes, 4) == [0, 0, 2, 2, 4]
    assert Sizes(1, 4).strike_off(PAIRS, 2)
    assert sizes.strike_off(Misfit(8, False, "a mesh of tp=8 needs 8 ranks"), 4)
    assert usable(sizes, 4) == [0, 0, 2, 2, 2]


def test_a_batch_is_for_so_many_ranks_at_most() -> None:
    sizes = Sizes(2, 4)
    assert sizes.strike_off(Misfit(6, False, "a global batch of 6 samples is for 6 ranks at most", at_most=True), 2)
    assert usable(sizes, 4) == [0, 0, 2, 3, 3]
    assert sizes.strike_off(Misfit(4, True, "a mesh of tp=4 needs a multiple of 4 ranks"), 2)
    assert usable(sizes, 4) == [0, 0, 2, 2, 2]


def test_a_job_may_be_kept_at_its_number() -> None:
    sizes = Sizes(2, 4)
    assert not sizes.is_kept
    assert sizes.keep(3, "nobody else can")
    assert not sizes.keep(3, "nobody else can"), "that is known"
    assert (sizes.is_kept, sizes.least, sizes.reason, usable(sizes, 5)) == (
        True,
        3,
        "nobody else can",
        [0, 0, 0, 3, 3, 3],
    )
    assert not sizes.strike_off(PAIRS, 1), "none would be left"


def test_one_that_is_set_free_may_have_all_that_was_not_struck_off() -> None:
    sizes = Sizes(2, 6)
    assert sizes.strike_off(PAIRS, 1)
    sizes.keep(4, "nobody else can")
    assert sizes.reason == f"{PAIRS.reason}; nobody else can"
    assert sizes.strike_off(Misfit(4, False, "no more than 4", at_most=True), 1)
    sizes.set_free()
    assert (sizes.is_kept, usable(sizes, 6)) == (False, [0, 0, 2, 2, 4, 4, 4])
    assert sizes.reason == f"{PAIRS.reason}; no more than 4"
    assert sizes.keep(2, "nobody else can")


def test_if_no_number_would_be_left_none_is_struck_off() -> None:
    sizes = Sizes(2, 4)
    assert not sizes.strike_off(Misfit(5, True, "a mesh of tp=5 needs a multiple of 5 ranks"), 1)
    assert (sizes.reason, usable(sizes, 4)) == ("", [0, 0, 2, 3, 4])

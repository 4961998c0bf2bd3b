"""What nodes hold: which snapshot is complete, and what an operator is told where none is."""

from ftrain_snapshot.holdings import explain, newest_complete
from ftrain_snapshot.inventory import Damage, Holding
from ftrain_snapshot.words import SnapshotId


def snapshot(version: int, generation: int = 1) -> SnapshotId:
    return SnapshotId(version, generation, version % 3)


def held(position: int, *versions: int, data: bool = True, parity: bool = True) -> list[Holding]:
    return [Holding(snapshot(v), position, data, parity) for v in versions]


def test_the_newest_complete_snapshot_is_the_newest_that_can_be_decoded():
    holdings = {0: held(0, 4, 5), 2: held(2, 4, 5), 3: held(3, 4)}
    assert newest_complete(holdings, 4, 1) == snapshot(4)
    holdings[1] = held(1, 5)
    assert newest_complete(holdings, 4, 1) == snapshot(5)
    assert newest_complete({0: held(0, 4)}, 4, 1) is None
    assert newest_complete({}, 4, 1) is None
    assert newest_complete({0: held(0, 9, parity=False)}, 1, 0) == snapshot(9)


def test_a_sealed_snapshot_is_complete_only_with_all_data():
    sealed = {p: held(p, 7, parity=False) for p in range(4)}
    assert newest_complete(sealed, 4, 1) == snapshot(7)
    del sealed[2]
    assert newest_complete(sealed, 4, 1) is None


def test_snapshots_of_two_generations_are_never_mixed():
    mixed = {p: [Holding(snapshot(7, 1 + p % 2), p, True, True)] for p in range(4)}
    assert newest_complete(mixed, 4, 1) is None


def test_an_operator_is_told_what_is_missing_and_who_must_come_back():
    text = explain({p: held(p, 41) for p in (0, 3)}, 4, 1)
    assert "Snapshot 41" in text
    assert "positions 1 and 2 are missing" in text
    assert text.endswith("It would be complete with position 1 or 2 back.")
    assert "any 2 of positions 1, 2 and 3 back" in explain({0: held(0, 41)}, 4, 1)
    assert "position 1 is missing" in explain({0: held(0, 3)}, 2, 0)
    assert "no node that is left" in explain({0: []}, 2, 1)
    assert explain({p: held(p, 8) for p in range(3)}, 4, 1) == (
        "Snapshot 8 (generation 1) is complete: the data of position 3 can be rebuilt from parity."
    )


def test_the_explanation_is_about_the_newest_that_all_survivors_have():
    text = explain({0: held(0, 10, 11), 3: held(3, 10)}, 4, 1)
    assert "Snapshot 10" in text


def test_groups_that_were_fixed_decide_and_not_the_number_of_nodes():
    groups = ((0, 2), (1, 3))
    holdings = {0: held(0, 6), 1: held(1, 6)}
    assert newest_complete(holdings, groups, 1) == snapshot(6)
    assert newest_complete(holdings, ((0, 1), (2, 3)), 1) is None
    assert explain(holdings, ((0, 1), (2, 3)), 1).endswith("It would be complete with position 2 or 3 back.")


def damaged(position: int, *damage: Damage, parity: bool = True) -> list[Holding]:
    return [Holding(snapshot(6), position, True, parity, damage=damage)]


def test_a_few_damaged_chunks_cost_no_snapshot_unless_they_meet_in_one_stripe():
    apart = {
        0: damaged(0, Damage(0, 1, 3, 5)),
        1: damaged(1, Damage(0, 2, 3, 5)),
        2: damaged(2, Damage(0, 1, 5, 9)),
        3: damaged(3, Damage(1, 1, 3, 5)),
    }
    assert newest_complete(apart, 4, 1) == snapshot(6)
    met = apart | {2: damaged(2, Damage(0, 1, 4, 9))}
    assert newest_complete(met, 4, 1) is None
    assert explain(met, 4, 1) == (
        "Snapshot 6 (generation 1) cannot be rebuilt: the bytes of positions 0 and 2 are missing or damaged in one "
        "stripe, and parity 1 replaces at most 1."
    )
    assert newest_complete(met, 4, 2) == snapshot(6)


def test_damage_beside_a_lost_node_is_fatal_where_the_parity_is_used_up():
    left = {0: held(0, 6), 1: damaged(1, Damage(0, 1, 0, 1)), 2: held(2, 6)}  # in rotation 1 it keeps parity
    assert newest_complete(left, 4, 1) is None
    assert newest_complete(left | {3: held(3, 6)}, 4, 1) == snapshot(6)

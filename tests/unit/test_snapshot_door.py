"""Who is turned away at the daemon's door: never the newcomer, never who is proved for who is not."""

from hypothesis import given
from hypothesis import strategies as st

from ftrain_snapshot.strangers import UNPROVED_MAX, Door


def test_silent_ones_do_not_keep_a_peer_out():
    door: Door[str] = Door()
    for number in range(UNPROVED_MAX):
        assert door.arrive(f"silent {number}") is None
    assert door.arrive("peer") == "silent 0"
    door.leave("silent 0")
    assert door.prove("peer") is None
    assert door.arrive("in its place") is None
    for number in range(1000):
        away = door.arrive(f"flood {number}")
        assert away is not None
        assert away != "peer"
        door.leave(away)


def test_who_waits_for_its_generation_has_a_bound_of_its_own():
    door: Door[int] = Door(unproved_max=2, proved_max=3)
    for number in range(3):
        assert door.arrive(number) is None
        assert door.prove(number) is None
    assert door.arrive(3) is None
    assert door.prove(3) == 0
    door.leave(0)
    assert door.arrive(4) is None


@given(st.lists(st.tuples(st.sampled_from(["arrive", "prove", "leave"]), st.integers(0, 9)), max_size=60))
def test_the_door_holds_as_many_as_it_may_and_drops_the_oldest(moves):
    door: Door[int] = Door(unproved_max=3, proved_max=2)
    unproved: list[int] = []
    proved: list[int] = []
    for move, who in moves:
        if move == "arrive" and who not in unproved + proved:
            unproved.append(who)
            away = door.arrive(who)
            assert away == (unproved[0] if len(unproved) > 3 else None)
        elif move == "prove" and who in unproved:
            unproved.remove(who)
            proved.append(who)
            away = door.prove(who)
            assert away == (proved[0] if len(proved) > 2 else None)
        else:
            away = who
        if away is not None:
            door.leave(away)
            unproved, proved = [x for x in unproved if x != away], [x for x in proved if x != away]

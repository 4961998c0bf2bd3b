"""When the agent's watch looks at its workers."""

from __future__ import annotations

from ftrain_launcher.rings.watch import AWAY_SECONDS, READ_SECONDS, Standstill


def test_who_has_stood_still_itself_gives_the_others_a_moment_to_wake_but_only_one() -> None:
    away, usual = READ_SECONDS + AWAY_SECONDS, READ_SECONDS + 0.9 * AWAY_SECONDS
    standstill = Standstill()
    assert [standstill.ends(pause) for pause in (usual, away, away, away, usual, usual, away)] == [
        False, True, False, True, False, False, True,
    ]  # fmt: skip

"""How far a source of lost chunks is believed."""

from __future__ import annotations

from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.rebuild_sources import STRIKES_MAX, Sources

LACKS = Damage(0, 1, 2, 3)
CHUNK = (0, 2, 7)
"""Lane, rotation, stripe."""


def test_what_a_member_lacks_and_what_it_sent_damaged_are_both_left_out() -> None:
    sources = Sources()
    sources.hear(1, (LACKS,))
    assert [sources.strike(1, *CHUNK) for _ in range(STRIKES_MAX)] == [False] * (STRIKES_MAX - 1) + [True]
    assert sources.bad() == {1: (LACKS, Damage(0, 2, 7, 8))}


def test_a_few_chunks_damaged_on_the_way_are_no_reason() -> None:
    sources = Sources()
    for stripe in range(STRIKES_MAX):
        assert not sources.strike(1, 0, 2, stripe)
    assert sources.bad() == {}


def test_who_is_connected_anew_is_believed_anew() -> None:
    sources = Sources()
    sources.hear(1, (LACKS,))
    sources.silence(1)
    for position in (1, 3):
        for _ in range(STRIKES_MAX):
            sources.strike(position, *CHUNK)
    sources.forgive(1)
    assert sources.bad() == {1: (LACKS,), 3: (Damage(0, 2, 7, 8),)}
    assert sources.answering({1, 3}) == {1, 3}
    assert not sources.strike(1, *CHUNK)


def test_who_was_silent_is_left_alone_for_a_while() -> None:
    sources = Sources()
    sources.silence(2)
    assert sources.answering({1, 2}) == {1}
    sources.ask_again(2)
    assert sources.answering({1, 2}) == {1, 2}

"""Memory that is reserved late: not before somebody wants it, and never once it is stopped."""

from __future__ import annotations

import threading

from ftrain.arena import _Reserving

LONG_SECONDS = 60.0


def test_is_asked_for_when_somebody_wants_it() -> None:
    asked = threading.Event()
    reserving = _Reserving(asked.set, list, LONG_SECONDS)
    assert not asked.is_set()
    reserving.hurry()
    assert asked.wait(LONG_SECONDS)
    assert reserving.is_mapped(LONG_SECONDS)


def test_who_waits_for_it_wants_it() -> None:
    assert _Reserving(lambda: None, list, LONG_SECONDS).is_mapped(LONG_SECONDS / 2)


def test_is_asked_for_after_a_while_anyway() -> None:
    asked = threading.Event()
    _Reserving(asked.set, list, 0.01)
    assert asked.wait(LONG_SECONDS)


def test_is_never_asked_for_once_stopped() -> None:
    asked = threading.Event()
    reserving = _Reserving(asked.set, list, LONG_SECONDS)
    reserving.stop()
    assert reserving.is_mapped(LONG_SECONDS)
    assert not asked.is_set()

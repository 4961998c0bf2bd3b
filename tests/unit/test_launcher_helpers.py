"""Whether a process that sleeps waits for helpers of its own that are starved: made-up counts, on a made-up clock."""

from __future__ import annotations

import os
import threading

import pytest

from ftrain_launcher.rings.helpers import Helpers, StarvedHelpers, Waits, share_waited, waits_of

MS = 1_000_000


class Process:
    """Its copier waits for a processor for a share of the time, and another thread sleeps."""

    def __init__(self, share: float) -> None:
        self.now_ms, self._share = 0, share
        self.helpers = Helpers(self._read)
        self.helpers.moved(0)

    def _read(self) -> dict[str, float]:
        return {"copier": 7.0 + self.now_ms * 1e-3 * self._share, "other": 3.0}

    def looks(self, *moments_ms: int, letter: str = "S") -> float:
        """It is looked at then, and what is told after the last look."""
        for self.now_ms in moments_ms:
            self.helpers.look(self.now_ms * MS, letter)
        return self.helpers.starved_seconds(self.now_ms * MS, self.now_ms * 1e-3)


def test_who_sleeps_while_a_helper_is_starved_is_starved_from_the_beginning_on() -> None:
    assert Process(1.0).looks(100, 200, 300, 800) == pytest.approx(0.8)
    assert Process(0.5).looks(100, 200, 300, 800) == pytest.approx(0.4)


def test_who_sleeps_by_itself_is_not() -> None:
    assert Process(0.0).looks(100, 200, 300, 800) == 0.0
    assert Process(1.0).looks(100, 200, 300, 800, letter="R") == 0.0, "it loops"


def test_what_has_just_begun_to_be_counted_says_nothing_and_if_that_is_late_nothing_is_said() -> None:
    """An agent that looks this late had no processor either."""
    assert Process(1.0).looks(100, 200) == 0.0
    assert Process(0.0).looks(900) == 0.9
    assert Process(0.0).looks(900, 1100) == 0.0


def test_what_it_was_before_it_moved_does_not_count() -> None:
    process = Process(1.0)
    process.looks(100, 200, 800)
    process.helpers.moved(900 * MS)
    assert process.looks(950, 1000) == 0.0


def test_the_one_that_waited_longest_counts_and_a_new_one_from_its_beginning() -> None:
    assert share_waited({"a": 1.0, "b": 5.0, "gone": 9.0}, {"a": 1.5, "b": 5.1, "new": 0.2}, 1.0) == 0.5
    assert share_waited({}, {"new": 3.0}, 1.0) == 1.0
    assert share_waited({"a": 1.0}, {}, 1.0) == 0.0


def test_all_threads_but_the_main_one_are_counted() -> None:
    done = threading.Event()
    helper = threading.Thread(target=done.wait)
    helper.start()
    try:
        found = waits_of(os.getpid())
        assert f"/proc/{os.getpid()}/task/{helper.native_id}" in found
        assert f"/proc/{os.getpid()}/task/{os.getpid()}" not in found
        assert min(found.values()) >= 0.0
    finally:
        done.set()
        helper.join()
    assert waits_of(1 << 30) == {}


def shares(*starved_seconds: float) -> list[float]:
    """Told at reports half a second apart, of a process whose loader waits for a processor for two fifths of the time
    and whose main thread does for so long; at last, how often they were counted."""
    reads = 0
    now_ns = 0

    def read() -> Waits:
        nonlocal reads
        reads += 1
        return {"loader": now_ns * 1e-9 * 0.4, "other": 3.0}

    helpers, told = StarvedHelpers(read), []
    for seconds in starved_seconds:
        now_ns += 500 * MS
        told.append(round(helpers.share(now_ns, seconds), 3))
    return [*told, float(reads)]


def test_where_a_main_thread_is_starved_its_helpers_are_counted_once_a_second() -> None:
    assert shares(0.1, 0.1, 0.1, 0.1, 0.1) == [0.0, 0.0, 0.0, 0.4, 0.4, 2]


def test_on_a_machine_that_has_processors_for_all_nobody_counts_them() -> None:
    assert shares(0.0, 0.01, 0.02, 0.0) == [0.0, 0.0, 0.0, 0.0, 0]


def test_what_they_waited_before_it_was_starved_is_not_known() -> None:
    assert shares(0.0, 0.1, 0.1, 0.1, 0.0, 0.1, 0.1) == [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 3]

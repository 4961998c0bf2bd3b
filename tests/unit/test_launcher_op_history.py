"""What is usual for an operation: the newest durations of its class."""

import pytest

from ftrain_launcher.detect.records import Op
from ftrain_launcher.rings.op_history import CLASSES_MAX, GAPS_MIN, WINDOW, OpHistory, class_of

MS = 1_000_000
KIND = class_of(0, Op.ALL_REDUCE, -1, 4096)


def history_of(*durations_ms: float) -> OpHistory:
    history = OpHistory()
    for duration in durations_ms:
        history.add(KIND, int(duration * MS))
    return history


def test_nothing_is_usual_before_three_have_completed():
    assert history_of(1, 1).usual_seconds(KIND) is None
    assert history_of(1, 1, 1).usual_seconds(KIND) == pytest.approx(0.001)


def test_a_first_one_that_compiles_never_counts():
    assert history_of(60_000, 1, 2, 1).usual_seconds(KIND) == pytest.approx(0.002)


def test_what_came_in_few_steps_is_no_habit_however_often():
    history = history_of(1, 1, 1)
    for step in (1, 2):
        history.begin_step(step)
        assert history.usual_seconds(KIND) is None
        for _ in range(5):
            history.add(KIND, MS)
        assert history.usual_seconds(KIND) is None
    history.begin_step(3)
    assert history.usual_seconds(KIND) == pytest.approx(0.001)


def test_what_comes_every_hundred_steps_is_usual_once_it_came_in_three():
    history = history_of(1, 1, 1)
    for step in (100, 200):
        history.begin_step(step)
        history.add(KIND, MS)
    assert history.usual_seconds(KIND) is None
    history.begin_step(300)
    assert history.usual_seconds(KIND) == pytest.approx(0.001)


def test_one_slow_one_in_a_full_window_is_not_usual():
    usual = history_of(0, *[1] * 200, 5000, *[2] * 30).usual_seconds(KIND)
    assert usual == pytest.approx(0.002)


def test_what_is_older_than_the_window_is_forgotten():
    assert history_of(0, *[1000] * 50, *[3] * WINDOW).usual_seconds(KIND) == pytest.approx(0.003)


def test_what_is_added_counts_from_the_next_refresh_on():
    history = history_of(0, 1, 1, 1)
    assert history.usual_seconds(KIND) == pytest.approx(0.001)
    history.add(KIND, 9 * MS)
    assert history.usual_seconds(KIND) == pytest.approx(0.001)
    history.refresh()
    assert history.usual_seconds(KIND) == pytest.approx(0.009)


def test_a_full_window_is_looked_at_again_too():
    history = history_of(*[1] * (WINDOW + 1))
    assert history.usual_seconds(KIND) == pytest.approx(0.001)
    for _ in range(8):
        for _ in range(WINDOW):
            history.add(KIND, 4 * MS)
        history.refresh()
    assert history.usual_seconds(KIND) == pytest.approx(0.004)


def test_a_usual_gap_is_what_most_steps_have_and_no_pause_now_and_then():
    """Of a step's operations the first is entered after the work, the others at once. The first step never counts."""
    history = OpHistory()
    for step in range(1, GAPS_MIN + 3):
        assert (history.usual_gap_seconds(KIND) is not None) == (step > GAPS_MIN + 2)
        history.begin_step(step)
        pauses = step in (1, 5, 7)
        for gap in (10_000 if pauses else 2_000, 0, 0):
            history.add(KIND, MS, gap * MS)
    assert history.usual_gap_seconds(KIND) == pytest.approx(2.0)


def test_sizes_within_a_factor_of_two_peers_and_communicators_make_the_class():
    assert class_of(0, Op.ALL_REDUCE, 3, 1024) == class_of(0, Op.ALL_REDUCE, -1, 1500)
    others = [
        class_of(1, Op.ALL_REDUCE, -1, 1024),
        class_of(0, Op.BROADCAST, -1, 1024),
        class_of(0, Op.ALL_REDUCE, -1, 2048),
        class_of(0, Op.SEND, 1, 1024),
        class_of(0, Op.SEND, 2, 1024),
    ]
    assert len({class_of(0, Op.ALL_REDUCE, -1, 1024), *others}) == 6


def test_memory_is_bounded_and_the_first_class_goes_first():
    history = OpHistory()
    for communicator in range(CLASSES_MAX + 1):
        for _ in range(4):
            history.add(class_of(communicator, Op.ALL_REDUCE, -1, 8), MS)
    assert history.usual_seconds(class_of(0, Op.ALL_REDUCE, -1, 8)) is None
    assert history.usual_seconds(class_of(CLASSES_MAX, Op.ALL_REDUCE, -1, 8)) == pytest.approx(0.001)

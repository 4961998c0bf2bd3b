"""A cap that holds over any stretch of time, and wastes nothing while there is something to send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_snapshot.pace import BURST_SECONDS, Pace

CHUNK = 1 << 20


@given(
    st.integers(1, 10_000_000_000),
    st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, CHUNK)), min_size=1, max_size=60),
)
def test_no_stretch_of_time_carries_more_than_rate_and_burst(rate, sends):
    pace = Pace(CHUNK)
    pace.limit(rate)
    now, sent = 0.0, []
    for idle_seconds, size in sends:
        now += idle_seconds + pace.delay_seconds(now + idle_seconds)
        pace.spend(size, now)
        sent.append((now, size))
    burst = max(CHUNK, rate * BURST_SECONDS)
    for i, (start, _) in enumerate(sent):
        total = 0
        for end, size in sent[i:]:
            total += size
            assert total <= rate * (end - start) + burst + CHUNK * 1e-6 + rate * end * 1e-9


@pytest.mark.parametrize("rate", [CHUNK, 20 * CHUNK, 1000 * CHUNK])
def test_who_always_has_something_to_send_gets_the_rate(rate):
    pace = Pace(CHUNK)
    pace.limit(rate)
    now, sent = 0.0, 0
    while sent < 50 * rate // CHUNK * CHUNK // 20 + 10 * CHUNK:
        now += pace.delay_seconds(now)
        pace.spend(CHUNK, now)
        sent += CHUNK
    assert sent / max(now, 1e-9) >= rate


def test_a_late_wake_up_is_made_up_for():
    pace = Pace(CHUNK)
    pace.limit(1000 * CHUNK)  # a chunk a millisecond
    sent = 0
    for wake in range(1, 101):  # every ten milliseconds
        while not pace.delay_seconds(wake / 100):
            pace.spend(CHUNK, wake / 100)
            sent += 1
    assert sent == pytest.approx(1000, abs=50)


def test_without_a_cap_nothing_waits():
    pace = Pace(CHUNK)
    pace.spend(1 << 40, 0.0)
    assert pace.delay_seconds(0.0) == 0
    pace.limit(1)
    pace.spend(CHUNK, 0.0)
    assert pace.delay_seconds(0.0) > 0
    pace.limit(0)
    assert pace.delay_seconds(0.0) == 0

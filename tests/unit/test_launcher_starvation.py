"""What the kernel's files say of waiting for a processor."""

from __future__ import annotations

import os

import pytest

from ftrain_launcher.rings import starvation
from ftrain_launcher.rings.starvation import Starvation, stat_paths, throttled_seconds, waited_seconds


def test_the_second_number_is_the_wait() -> None:
    assert waited_seconds(b"626862 1500000000 17\n") == 1.5
    assert waited_seconds(b"") == 0.0


def test_quotas_of_both_versions() -> None:
    assert throttled_seconds(b"nr_periods 5\nnr_throttled 5\nthrottled_time 250000000\nnr_bursts 0\n") == 0.25
    assert throttled_seconds(b"usage_usec 9\nnr_throttled 5\nthrottled_usec 250000\n") == 0.25
    assert throttled_seconds(b"usage_usec 9\n") == 0.0


def test_a_quota_may_be_that_of_a_cgroup_further_up() -> None:
    first = "3:cpuset:/x\n2:cpu,cpuacct:/pod/one\n1:name=systemd:/y\n"
    mount = "/sys/fs/cgroup/cpu"
    assert stat_paths(first) == [f"{mount}/cpu.stat", f"{mount}/pod/cpu.stat", f"{mount}/pod/one/cpu.stat"]
    assert stat_paths("0::/\n") == ["/sys/fs/cgroup/cpu.stat"]


def test_it_only_grows_and_without_a_count_there_is_nothing() -> None:
    own = Starvation(os.getpid())
    waited = own.more()
    assert waited is not None
    assert waited.starved >= 0.0
    own.close()
    uncounted = Starvation(1 << 30)
    assert uncounted.more() == (0.0, 0.0)
    uncounted.close()


def test_what_came_to_a_process_that_has_ended_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers no more (ESRCH), though the file is open."""
    own = Starvation(os.getpid())
    monkeypatch.setattr(starvation, "_read", lambda fd: b"")
    assert own.more() is None
    own.close()


def test_a_thread_is_held_back_for_no_longer_than_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts what each processor kept from the cgroup: a group of four threads waits four times as long."""
    waited, throttled = 1.0, 2.0
    own = Starvation(os.getpid())
    monkeypatch.setattr(starvation, "_read", lambda fd: b"5 %d 7" % (waited * 1e9) if fd == own._schedule else b"")
    monkeypatch.setattr(own, "_read_throttled", lambda: throttled)
    own.more()
    waited = 1.5
    own.more()  # it is in other cgroups than it was
    waited, throttled = 2.0, 4.0
    assert own.more() == (0.0, 0.5)
    waited, throttled = 2.5, 4.25
    assert own.more() == (0.25, 0.25)
    own.close()


def test_a_process_that_waits_for_a_processor_by_now_is_seen_to_before_the_kernel_counts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = [
        (1.0, "R", b"5 0 1", 0.0),
        (1.4, "R", b"5 0 1", 0.4),
        (1.9, "R", b"5 0 1", 0.9),
        (2.0, "R", b"6 0 2", 0.0),  # it had a turn
        (2.1, "S", b"6 0 2", 0.0),
        (2.5, "S", b"6 0 2", 0.0),
        (2.6, "R", b"6 0 2", 0.1),
        (2.9, "R", b"", 0.0),
        (3.9, "R", b"", 0.0),  # no count
    ]
    own = Starvation(os.getpid())
    for seconds, letter, counted, queued in looks:
        monkeypatch.setattr(starvation, "_read", lambda fd, counted=counted: counted)
        assert own.queued_seconds(letter, int(seconds * 1e9)) == pytest.approx(queued)
    monkeypatch.undo()
    own.close()

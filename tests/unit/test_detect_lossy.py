"""Which node sends so much again that its links are looked at."""

from __future__ import annotations

import pytest

from ftrain_launcher.detect.asking import ASK_AGAIN_SECONDS
from ftrain_launcher.detect.lossy import WINDOW_SECONDS, LossyNodes, SentAgain
from ftrain_launcher.detect.records import NodeReport, RankRecord, SentSegments
from ftrain_launcher.rings.sent_segments import SegmentsWatch, parse

REPORT_SECONDS = 0.5


def asked(again: list[int], sent: int = 800) -> dict[float, SentAgain]:
    """When probes are wanted, where a node sends so many segments between two reports, of which so many again."""
    lossy, found = LossyNodes(), {}
    total = SentSegments(100_000, 3_000)
    for number, lost in enumerate([0, *again]):
        total = SentSegments(total.sent + sent, total.again + lost)
        ranks = (RankRecord(4, 70, 0.1), RankRecord(5, 71, 0.1))
        report = NodeReport(node="node-1", generation=1, communicators=(), ranks=ranks, segments=total)
        if (one := lossy.take(report, number * REPORT_SECONDS)) is not None:
            found[number * REPORT_SECONDS] = one
    return found


def test_what_is_lost_again_and_again_is_asked_about() -> None:
    (moment, one), *_ = asked([0, 0, 0, 47, 0, 2, 0, 48]).items()
    assert (moment, one) == (3.0, SentAgain("node-1", 71, 49, 4800))
    assert one.sentence == "TCP on the host of node-1 sent 49 of 4800 segments again"


@pytest.mark.parametrize(
    "again",
    [
        pytest.param([0] * 100, id="nothing"),
        pytest.param([0, 48, *[0] * 20, 48, *[0] * 20], id="one piece, and much later another"),
        pytest.param([1, 0, 0, 1, 0, 0, 0, 1, 0, 0] * 10, id="few"),
    ],
)
def test_accidents_are_not(again: list[int]) -> None:
    assert asked(again) == {}


def test_nor_is_a_small_share_of_a_fast_line() -> None:
    assert asked([50] * 40, sent=100_000) == {}
    assert asked([150] * 40, sent=100_000) != {}


def test_while_it_lasts_it_is_asked_again_and_ever_more_seldom() -> None:
    first, second, third, *_ = asked([9] * 100)
    assert (second - first, third - second) == (ASK_AGAIN_SECONDS, 2 * ASK_AGAIN_SECONDS)
    assert first <= WINDOW_SECONDS


def test_where_the_kernel_does_not_tell_nothing_is_asked() -> None:
    assert LossyNodes().take(NodeReport(node="a", generation=1, communicators=(), ranks=()), 1.0) is None


def test_the_kernels_counts() -> None:
    snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoMin OutSegs RetransSegs\nTcp: 200 206417942 261050\nUdp: NoPorts\nUdp: 0\n"
    assert parse(snmp) == SentSegments(206_417_942, 261_050)
    for other in ("", "Tcp: OutSegs\nTcp: 7\n", "Tcp: OutSegs RetransSegs\nTcp: 7\n", "Tcp: OutSegs\nTcp: x\n"):
        with pytest.raises(ValueError):
            parse(other)


def test_this_hosts_own() -> None:
    watch = SegmentsWatch()
    found = watch.read()
    assert found is not None
    assert found.again <= found.sent
    watch.close()
    assert watch.read() is None

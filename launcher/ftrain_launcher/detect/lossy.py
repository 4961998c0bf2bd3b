"""Pure: which node's TCP sends so much again that links should be probed.

Operations hide most of what a lost segment costs: a rest of 200 ms in one of a step's operations, which only two of its
members feel, looks like one rank that was late for once. The kernel counts the loss itself. Its counts are of the whole
host, whoever sends, and some of what is sent again was never lost, so they accuse nobody: probes tell which link it is,
if it is any (`links.judge_matrix`).
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

from ftrain_launcher.detect.asking import Asking
from ftrain_launcher.detect.records import NodeReport, SentSegments

WINDOW_SECONDS = 5.0
SENT_AGAIN_SHARE_MIN = 0.001
"""Of all that the host sends; a link that loses may carry a small part of that. Networks that are well lose a quarter
of it."""
SENT_AGAIN_MIN = 5
"""Within the window; of these, few may be one accident."""
MOMENTS_MIN = 2
"""In so many reports: one lost piece of a stream is up to 64 KiB, and all its segments are sent again at once."""


class SentAgain(NamedTuple):
    """A node that sends much again."""

    node: str
    step: int
    """The newest of its ranks, or -1."""
    again: int
    sent: int

    @property
    def sentence(self) -> str:
        """For people."""
        return f"TCP on the host of {self.node} sent {self.again} of {self.sent} segments again"


class _Count(NamedTuple):
    at: float
    segments: SentSegments


class LossyNodes:
    """Those of one generation."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[_Count]] = {}
        self._asking = Asking()

    def take(self, report: NodeReport, now: float) -> SentAgain | None:
        """The node of this report, if it calls for probes now; ``now`` in seconds, of any one clock."""
        if report.segments is None:
            return None
        window = self._windows.setdefault(report.node, deque())
        window.append(_Count(now, report.segments))
        while window[0].at < now - WINDOW_SECONDS:
            window.popleft()
        counts = [count.segments for count in window]
        moments = sum(later.again > earlier.again for earlier, later in pairwise(counts))
        again, sent = counts[-1].again - counts[0].again, counts[-1].sent - counts[0].sent
        loses = moments >= MOMENTS_MIN and again >= max(SENT_AGAIN_MIN, SENT_AGAIN_SHARE_MIN * sent)
        if not loses or not self._asking.may("links", now):
            return None
        return SentAgain(report.node, max((record.step for record in report.ranks), default=-1), again, sent)

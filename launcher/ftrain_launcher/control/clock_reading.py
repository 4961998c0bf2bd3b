"""The controller asks an agent what its clock says, a few times, to know how far it is from its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from ftrain_launcher.clock import Offset, Sample, estimate
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.questions import ClockRead, ClockWanted

_SAMPLES = 8
_ANSWER_SECONDS = 1.0
CLOCK_SECONDS_MAX = _SAMPLES * _ANSWER_SECONDS


class Clock(NamedTuple):
    """One of a host's clocks: how it is read here, and where it is in an agent's answer."""

    ours: Callable[[], float]
    theirs: Callable[[ClockRead], float]


MONOTONIC = Clock(time.monotonic, attrgetter("monotonic_seconds"))
TIME_OF_DAY = Clock(time.time, attrgetter("unix_seconds"))


async def offset_of(requests: Requests, node: str, clock: Clock) -> Offset | str:
    """From a node's clock to the same one here; or why it is not known. Within ``CLOCK_SECONDS_MAX``."""
    samples, failure = [], ""
    for _ in range(_SAMPLES):
        asked = clock.ours()
        answer = await requests.ask(node, ClockWanted, ClockRead, _ANSWER_SECONDS)
        if isinstance(answer, str):
            failure = answer
            break
        samples.append(Sample(asked, clock.theirs(answer), clock.ours()))
    return estimate(samples) or failure

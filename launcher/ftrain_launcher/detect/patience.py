"""Pure: who is given more time than others, since he was called hung and may only be slow.

A process that stands still for a second while others wait for it is a fault, or a program that saves a checkpoint,
reads a bad batch or evaluates. The first verdict cannot wait to learn which. Who is called hung again where he was
before, without having come further, is therefore given twice the time, each time: a fault stays one however long it is
looked at, and what ends by itself was none. How long that took is remembered for as long as the job runs, for the rank
and for the operations in which it was waited for; of two ranks, for all.

Progress is told by steps: a call counts for nothing after its step. Who was stopped or gone was no matter of time.

A generation's first step proves less than others: in it processes read their state and compile, and a new one does so
for longer than those that were kept. What is seen there counts once it was seen in two generations.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ftrain_launcher.detect.records import Op

GIVEN_SECONDS_MAX = 600.0
"""Nobody is given more: people wait."""
DOUBLINGS_MAX = 8
CALLS_MIN = 5
"""Who was called so often, and was given all that may be given, hangs."""
MARGIN_FACTOR = 2.0
"""How much longer than what was no fault the next one may last."""

Waiting = tuple[int, int]
"""In what ranks wait for one: the operation, and how many members its communicator has."""
_TRANSFERS = frozenset((Op.SEND, Op.RECEIVE))


def waiting_in(op: int, members: int) -> Waiting:
    """The class of an operation, the same in each generation and for each group of such a size.

    Its bytes may change from step to step. Whether one waits to send or to receive is a matter of moments.
    """
    return int(Op.SEND if op in _TRANSFERS else op), members


class Call(msgspec.Struct, frozen=True):
    """A rank was called hung."""

    incident: int
    """Of this number."""
    step: int
    """The last that it had done; -1: nobody knows."""
    allowed_seconds: float
    """How long it had been given."""


class WentOn(msgspec.Struct, frozen=True, tag="went_on"):
    """A rank that is given more time kept others waiting for as long as had been called a hang, and went on."""

    generation: int
    rank: int
    step: int
    """The last that it had done before."""
    seconds: float
    """How long it was outside of all operations."""
    waiting: tuple[Waiting, ...]
    """In what others waited for it."""
    in_first_step: bool
    """Of its generation."""


class Patience:
    """One job's."""

    def __init__(self, collective_timeout_seconds: float | None = None) -> None:
        """``collective_timeout_seconds``: what waits for longer ends with an error."""
        timeout = GIVEN_SECONDS_MAX if collective_timeout_seconds is None else collective_timeout_seconds
        self._given_seconds_max = min(GIVEN_SECONDS_MAX, timeout)
        self._calls: dict[int, list[Call]] = {}
        """By rank, oldest first."""
        self._weak: dict[int, list[WentOn]] = {}
        """By rank: in first steps."""
        self._innocent: dict[Waiting, dict[int, float]] = {}
        """How long who was waited for without a fault."""
        self._resumed_from = -1

    # ---- what happens

    def begin(self, version: int | None) -> None:
        """A generation starts after this step."""
        self._resumed_from = -1 if version is None else version

    def called(self, ranks: Iterable[int], call: Call) -> None:
        """These were called hung, and had been given some time before."""
        call = msgspec.structs.replace(call, step=self.step(call.step))
        for rank in ranks:
            self._calls.setdefault(rank, []).append(call)

    def went_on(self, event: WentOn) -> list[Call] | None:
        """The rank's calls at that place, which were no faults and are forgotten; None: that is not known yet."""
        shown = [event]
        if event.in_first_step:
            earlier = [one for one in self._weak.get(event.rank, ()) if one.generation != event.generation]
            shown = self._weak[event.rank] = [*earlier, event]
            if len(shown) < 2:
                return None
        seconds, steps = max(one.seconds for one in shown), {one.step for one in shown}
        for waiting in {waiting for one in shown for waiting in one.waiting}:
            known = self._innocent.setdefault(waiting, {})
            known[event.rank] = max(seconds, known.get(event.rank, 0.0))
        self._weak.pop(event.rank, None)
        calls = self._calls.get(event.rank, [])
        self._calls[event.rank] = [call for call in calls if call.step not in steps]
        return [call for call in calls if call.step in steps]

    # ---- what follows

    def step(self, seen: int) -> int:
        """The step after which a rank is that has marked ``seen`` in this generation."""
        return max(seen, self._resumed_from)

    def allowed_seconds(self, rank: int, seen: int, waiting: Waiting, usual_seconds: float) -> float:
        """How long others may wait for a rank, where they usually may for ``usual_seconds``."""
        if not self._calls and not self._innocent:
            return usual_seconds
        known = max(usual_seconds, MARGIN_FACTOR * self._innocent_seconds(rank, waiting))
        given = known * 2.0 ** min(DOUBLINGS_MAX, len(self._without_progress(rank, seen)))
        return max(usual_seconds, min(given, self._given_seconds_max))

    def called_before(self) -> Iterable[int]:
        """The ranks that may be given more time."""
        return self._calls

    def gives_more(self, rank: int, seen: int) -> bool:
        """Whether a rank has it where it is."""
        return bool(self._without_progress(rank, seen))

    def fault_seconds(self, rank: int, seen: int, waiting: Waiting, called_seconds: float) -> float:
        """After how long a wait for a rank would be called a hang, were it given no more time than at first.

        ``called_seconds``: in this generation it was called after that.
        """
        first = min((call.allowed_seconds for call in self._without_progress(rank, seen)), default=called_seconds)
        return max(min(first, called_seconds), MARGIN_FACTOR * self._innocent_seconds(rank, waiting))

    def after(self, allowed_seconds: float) -> float:
        """What is given there the next time."""
        return max(allowed_seconds, min(2.0 * allowed_seconds, self._given_seconds_max))

    def times_used_up(self, ranks: Iterable[int], call: Call) -> int:
        """How often one of these was called at one place by now, if it was given all that may be given; else 0."""
        calls = 1 + max((len(self._without_progress(rank, call.step)) for rank in ranks), default=0)
        all_given = calls >= CALLS_MIN and call.allowed_seconds >= self._given_seconds_max
        return calls if calls > DOUBLINGS_MAX or all_given else 0

    def _without_progress(self, rank: int, seen: int) -> list[Call]:
        step = self.step(seen)
        return [call for call in self._calls.get(rank, ()) if call.step >= step]

    def _innocent_seconds(self, rank: int, waiting: Waiting) -> float:
        known = self._innocent.get(waiting, {})
        if rank in known:
            return known[rank]
        return max(known.values()) if len(known) > 1 else 0.0

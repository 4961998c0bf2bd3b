"""Reads from other groups: asked of the node whose bytes they are, or of another of its group, by way of the gate.

A daemon is connected to its own group and to the gate, and the gate to all. So a question for another group goes to the
gate, which passes it on to the owner or, if that is lost, to another member of its group, who decodes (degraded.py). No
connection is made for it; who reads much from other groups (a change of layout) shares the gate's line with others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ftrain_snapshot.degraded import Answer, Reads, check_ranges
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.loop import Timer
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.messages import Bytes, Incomplete, Read, Refused, Reply, UnitInfo, Units
from ftrain_snapshot.node import Node
from ftrain_snapshot.placement import Groups, groups
from ftrain_snapshot.wire import FarAnswer, FarFailed, FarRead
from ftrain_snapshot.words import SnapshotId

ANSWER_TIMEOUT_SECONDS = 10.0
QUESTIONS_MAX = 1024
"""Questions to other daemons under way at once."""

OnAnswer = Callable[[FarAnswer, bytes], None]
OnFailed = Callable[[str], None]


class FarReads:
    """Any unit of the job, for clients of this daemon; and the part of it that others ask this daemon for."""

    def __init__(self, node: Node, gate: int, reads: Reads) -> None:
        self._loop, self._links = node.loop, node.links
        self._gate = gate
        self._reads = reads
        m = node.membership
        self._groups: Groups = m.groups or groups(len(m.peers), m.parity)
        self._is_gate = node.position == gate
        self._attempt = 0
        self._asked: dict[int, tuple[int, Timer, OnAnswer, OnFailed]] = {}

    def close(self) -> None:
        """The generation is over."""
        for _, timer, _, _ in self._asked.values():
            timer.cancel()
        self._asked.clear()

    # What clients of this daemon ask.

    def answer_read(self, request: Read, answer: Answer) -> None:
        """Any byte ranges, of any position; the answer may take a while."""
        if request.position in self._reads.group.members or not self._is_known(request.position):
            self._reads.answer_read(request, answer)
            return
        try:
            check_ranges(request.ranges)
        except ValueError as error:
            answer(Refused(str(error)))
            return
        _FarReading(self, request, answer).begin()

    def answer_units(self, snapshot: SnapshotId, answer: Callable[[Reply], None]) -> None:
        """All units of the job."""
        found: list[UnitInfo] = []
        left = [members for members in self._groups if members != self._reads.group.members]

        def on_answer(message: FarAnswer, _: bytes) -> None:
            found.extend(message.units)
            ask_next()

        def ask_next() -> None:
            if not left:
                answer(Units(tuple(sorted(found, key=lambda unit: (unit.position, unit.lane)))))
                return
            question = FarRead(snapshot, left.pop()[0], -1, 0, 0, 0)
            self.ask(question, on_answer, lambda reason: answer(Incomplete(reason)))

        try:
            found.extend(self._reads.units(snapshot))
        except SnapshotIncomplete as error:
            answer(Incomplete(str(error)))
            return
        ask_next()

    def _is_known(self, position: int) -> bool:
        return any(position in members for members in self._groups)

    # Questions to other daemons.

    def ask(self, question: FarRead, on_answer: OnAnswer, on_failed: OnFailed) -> None:
        """Put it to who can answer, or knows who can; one of the two is called once, maybe before this returns."""
        towards = self._towards(question.position)
        if towards is None:
            on_failed(f"nobody of the group of position {question.position} is connected")
            return
        if len(self._asked) >= QUESTIONS_MAX:
            on_failed("too many reads of other groups are under way")
            return
        self._attempt += 1
        attempt = self._attempt
        timer = self._loop.later(ANSWER_TIMEOUT_SECONDS, lambda: self._fail(attempt, f"position {towards} is silent"))
        self._asked[attempt] = towards, timer, on_answer, on_failed
        q = question
        self._links[towards].send(FarRead(q.snapshot, q.position, q.lane, q.start, q.stop, attempt))

    def _towards(self, position: int) -> int | None:
        members: tuple[int, ...] = next((each for each in self._groups if position in each), ())
        candidates = [position, *members, *(() if self._is_gate else (self._gate,))]
        return next((candidate for candidate in candidates if candidate in self._links), None)

    def on_answer(self, position: int, message: FarAnswer, body: memoryview) -> None:
        """An answer; damaged on its way it is none."""
        towards, timer, on_answer, on_failed = self._asked.get(message.attempt, (None, None, None, None))
        if towards != position or timer is None or on_answer is None or on_failed is None:
            return
        del self._asked[message.attempt]
        timer.cancel()
        if checksum(body) != message.checksum:
            on_failed(f"what position {position} sent was damaged on its way")
        else:
            on_answer(message, bytes(body))

    def on_failed(self, position: int, message: FarFailed) -> None:
        """It cannot be had there."""
        if self._asked.get(message.attempt, (None,))[0] == position:
            self._fail(message.attempt, message.reason)

    def on_lost(self, position: int) -> None:
        """A connection is gone, and with it what was asked there."""
        for attempt in [a for a, (towards, *_) in self._asked.items() if towards == position]:
            self._fail(attempt, f"the connection to position {position} was lost")

    def _fail(self, attempt: int, reason: str) -> None:
        if attempt in self._asked:
            _, timer, _, on_failed = self._asked.pop(attempt)
            timer.cancel()
            on_failed(reason)

    # Questions from other daemons.

    def on_question(self, position: int, q: FarRead) -> None:
        """Answer from this group; the gate passes on what is of another."""

        def send(answer: FarAnswer, data: bytes | memoryview) -> None:
            if (link := self._links.get(position)) is not None:
                link.send_bulk(FarAnswer(q.attempt, answer.units, checksum(data)), memoryview(data))

        def refuse(reason: str) -> None:
            if (link := self._links.get(position)) is not None:
                link.send(FarFailed(q.attempt, reason))

        if q.position not in self._reads.group.members:
            if self._is_gate:
                self.ask(q, send, refuse)
            else:
                refuse(f"position {q.position} is of another group")
            return
        try:
            if q.lane < 0:
                send(FarAnswer(q.attempt, self._reads.units(q.snapshot), 0), b"")
            elif q.stop - q.start > CHUNK_BYTES:
                refuse(f"{q.stop - q.start} bytes are too many for one answer")
            else:
                where = (q.snapshot, q.position, q.lane, [(q.start, q.stop)])
                self._reads.read(*where, lambda data: send(FarAnswer(q.attempt, (), 0), data), refuse)
        except (SnapshotIncomplete, ValueError) as error:
            refuse(str(error))


class _FarReading:
    """One client's read, a MiB at a time."""

    def __init__(self, far: FarReads, request: Read, answer: Answer) -> None:
        self._far, self._request, self._answer = far, request, answer
        self._left = deque(
            (at, min(stop, at + CHUNK_BYTES))
            for start, stop in request.ranges
            for at in range(start, stop, CHUNK_BYTES)
        )
        self._out = bytearray()

    def begin(self) -> None:
        r = self._request
        if not self._left:
            self._answer(Bytes(r.number, len(self._out)), memoryview(self._out))
            return
        question = FarRead(r.snapshot, r.position, r.lane, *self._left.popleft(), 0)
        self._far.ask(question, self._on_answer, lambda reason: self._answer(Incomplete(reason)))

    def _on_answer(self, message: FarAnswer, data: bytes) -> None:
        if not data:
            self._answer(Incomplete(f"position {self._request.position} answered with nothing"))
            return
        self._out += data
        self.begin()

"""Reports of ranks made by hand, and what the detector says of them."""

from __future__ import annotations

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import (
    Channel,
    Collectives,
    Communicator,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.detect.waits import PAUSE_SECONDS_MAX

WORLD = Communicator("world", (0, 1, 2, 3))
PAIR = Communicator("pair", (2, 3))
LONG = 1.0
"""Longer than what is allowed here."""


def called(seq: int, age: float, op: Op = Op.ALL_REDUCE, **changes: float | None) -> Operation:
    known: dict[str, float | None] = {
        "elements": 100,
        "dtype": 6,
        "root": -1,
        "gap_seconds": 0.01,
        "usual_seconds": 0.02,
    }
    return Operation(seq=seq, op=op, bytes=400, age_seconds=age, **{**known, **changes})  # type: ignore[arg-type]


def inside(operation: Operation, communicator: int = 0) -> Collectives:
    """Entered, and not left."""
    return Collectives(communicator, operation.seq, operation.seq - 1, (operation,), operation)


def beyond(operation: Operation, communicator: int = 0) -> Collectives:
    """Entered and left."""
    return Collectives(communicator, operation.seq, operation.seq, (), operation)


def rank(number: int, *places: Collectives, letter: str = "S", idle: float = LONG + 0.1, **more: object) -> RankRecord:
    process = ProcessState(letter, 1.0, letter)
    return RankRecord(number, 10, idle + 1.0, places, process=process, idle_seconds=idle, **more)  # type: ignore[arg-type]


def told(
    *records: RankRecord, now: float = 100.0, communicators: tuple[Communicator, ...] = (WORLD, PAIR)
) -> list[Verdict]:
    """The verdicts on one report from each rank's own node; of one that is stopped, on two."""
    detector = Detector(1, {number: f"node-{number}" for number in range(4)})
    stopped = [record for record in records if record.process is not None and record.process.letter == "T"]
    for moment, newest in ((now - PAUSE_SECONDS_MAX - 0.1, stopped), (now, records)):
        for record in newest:
            node = f"node-{record.rank}"
            detector.take(NodeReport(node=node, generation=1, communicators=communicators, ranks=(record,)), moment)
    return detector.verdicts(now)


def waiting(*numbers: int, **changes: float | None) -> list[RankRecord]:
    return [rank(number, inside(called(8, LONG, **changes))) for number in numbers]  # type: ignore[arg-type]


def committing(number: int, age: float) -> RankRecord:
    """It has done its step, and waits for rank 0's word."""
    commit = called(11, age, Op.COMMIT, usual_seconds=None, gap_seconds=0.0)
    return rank(number, beyond(called(7, age + 0.3)), idle=age + 0.3, commit=commit)


def channel(peer: int, sent: int, received: int, *pending: Operation) -> Channel:
    receiving = sum(operation.op == Op.RECEIVE for operation in pending)
    return Channel(0, peer, sent, sent, received, received - receiving, pending)


def receive(seq: int, age: float = LONG) -> Operation:
    return called(seq, age, Op.RECEIVE)

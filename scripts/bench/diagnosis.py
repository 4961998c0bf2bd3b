"""How long the detector takes over jobs of many ranks: reports taken, and the verdict that names one hung rank.

Each rank is in four communicators: all ranks, a replica's, a pipeline's and a tensor's group. One rank has not entered
the newest collective of any, and all others wait. Also what a round of reports costs while nothing is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from common import Report, median, parser

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import (
    Collectives,
    Communicator,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)

RANKS_PER_NODE = 8
TENSOR, STAGES = 8, 10
SECONDS_MAX = 1.0
LIMITED_RANKS = 10_000


def groups(ranks: int) -> list[dict[int, Communicator]]:
    """By kind, each rank's communicator."""
    stages = STAGES * TENSOR
    by_color = (
        {rank: 0 for rank in range(ranks)},
        {rank: rank % stages for rank in range(ranks)},
        {rank: rank // stages * TENSOR + rank % TENSOR for rank in range(ranks)},
        {rank: rank // TENSOR for rank in range(ranks)},
    )
    made = []
    for kind, color_of in enumerate(by_color):
        members: dict[int, list[int]] = {}
        for rank, color in color_of.items():
            members.setdefault(color, []).append(rank)
        communicators = {color: Communicator(f"{kind}.{color}", tuple(some)) for color, some in members.items()}
        made.append({rank: communicators[color] for rank, color in color_of.items()})
    return made


def reports(ranks: int, hung: int, age_seconds: float) -> Iterator[NodeReport]:
    """One round; ``hung``: this rank has not entered what all others are in, -1: nothing is pending."""
    kinds = groups(ranks)
    for first in range(0, ranks, RANKS_PER_NODE):
        table: dict[int, Communicator] = {}
        records = []
        for rank in range(first, min(ranks, first + RANKS_PER_NODE)):
            places = []
            for communicators in kinds:
                # Who shares a smaller group with the hung rank waits there, all others in the group of all.
                waits = hung >= 0 and rank != hung and communicators[rank] is communicators[hung]
                seq = 1000 if rank != hung else 999
                age = age_seconds if rank != hung else age_seconds + 0.1
                last = Operation(seq, Op.ALL_REDUCE, 4000, 6, 1000, -1, age, 0.05, 0.02)
                table.setdefault(id(communicators[rank]), communicators[rank])
                index = list(table).index(id(communicators[rank]))
                places.append(Collectives(index, seq, seq - waits, (last,) if waits else (), last))
            process = ProcessState("S" if rank != hung else "R", 100.0, "S" if rank != hung else "R")
            records.append(RankRecord(rank, 100, age_seconds + 1.0, tuple(places), (), process))
        node = f"node-{first // RANKS_PER_NODE}"
        yield NodeReport(node=node, generation=1, communicators=tuple(table.values()), ranks=tuple(records))


def measure(ranks: int) -> tuple[float, float, float]:
    """Seconds to take a round while all is well, to take one with a hung rank, and to name it."""
    detector = Detector(1, {rank: f"node-{rank // RANKS_PER_NODE}" for rank in range(ranks)})
    quiet, late, hung = list(reports(ranks, -1, 0.01)), list(reports(ranks, ranks // 2, 1.0)), ranks // 2

    def take(some: list[NodeReport], now: float) -> float:
        begun = time.process_time()
        for report in some:
            detector.take(report, now)
        return time.process_time() - begun

    well = take(quiet, 10.0)
    if detector.verdicts(10.0):
        raise RuntimeError("a verdict on a job in which nothing is wrong")
    taken = take(late, 11.0)
    begun = time.process_time()
    verdicts = detector.verdicts(11.0)
    found = time.process_time() - begun
    if [verdict.ranks for verdict in verdicts] != [(hung,)]:
        raise RuntimeError(f"not named: {verdicts}")
    return well, taken, found


def main() -> None:
    """Print the table."""
    arguments = parser(__doc__ or "").parse_args()
    report = Report("Diagnosis: one hung rank, four communicators each, one core")
    for ranks in (1_000, 10_000) if arguments.quick else (1_000, 10_000, 100_000):
        rounds = [measure(ranks) for _ in range(1 if ranks > LIMITED_RANKS else 3)]
        well, taken, found = (median([one[i] for one in rounds]) for i in range(3))
        limit = SECONDS_MAX if ranks == LIMITED_RANKS else None
        report.add(f"{ranks} ranks: a round of reports, all well", well, "s")
        report.add(f"{ranks} ranks: reports taken and rank named", taken + found, "s", limit)
    report.write(arguments.json)


if __name__ == "__main__":
    main()

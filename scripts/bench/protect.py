"""How long a snapshot takes from sealed to protected, in copies of the same bytes; four nodes' daemons on this machine.

The unit is four processes that copy as many bytes as a node has into warm shared memory, all at once. Since all nodes
share the cores, it bounds what any protecting can do here. It is measured anew before each round, and a figure is the
median of the rounds' own ratios: on a shared machine a unit from another minute says nothing.

- *protect*: every node has new state, captured and sealed; then all daemons are told at once. Time until the gate says
  that it is protected everywhere, checksums at both ends included.
- *streamed*: the same, but the daemons are told of each 16 MiB while they are captured; what is left after the seal.
- *frozen*: one percent of the state changes; what is copied, sent and coded of it, as shares of all of it.
- *repair*: a node is lost, a spare takes its place; until it has its bytes back.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

from common import CLEAN_TIMEOUT_SECONDS, ROOT, Report, median, parser
from job import MARK, mark_session
from leftovers import SHARED_MEMORY, shared_memory_entries, wait_until_clean

sys.path[:0] = [str(ROOT / "tests")]

from snapshot_nodes import Cluster, capture, content, edited  # noqa: E402

from ftrain_snapshot.codec import choose  # noqa: E402
from ftrain_snapshot.errors import CodecUnsupported  # noqa: E402
from ftrain_snapshot.manifest import CHUNK_BYTES  # noqa: E402
from ftrain_snapshot.messages import SnapshotId  # noqa: E402

COPIER = ROOT / "scripts" / "bench" / "protect_copy.py"
NODES = 4
TIMEOUT_SECONDS = 60.0
STREAM_CHUNKS = 16
FROZEN = 0.99


def unit_seconds(folder: Path, size: int, rounds: int = 3) -> float:
    """Four processes copying ``size`` bytes at once: the slowest of them, in the median round."""
    files = [folder / f"unit{i}" for i in range(NODES)]
    copiers = [
        Popen([sys.executable, str(COPIER), str(file), str(size)], stdin=PIPE, stdout=PIPE, text=True, bufsize=1)
        for file in files
    ]
    times = []
    for turn in range(rounds + 1):
        if turn:
            for copier in copiers:
                print(file=copier.stdin)
        words = [copier.stdout.readline() for copier in copiers if copier.stdout is not None]
        if turn:
            times.append(max(map(float, words)))
    for copier, file in zip(copiers, files, strict=True):
        copier.communicate(timeout=TIMEOUT_SECONDS)
        file.unlink()
    return median(times)


class Bench:
    """One cluster of four nodes, with as many bytes each."""

    def __init__(self, folder: Path, parity: int, codec: str, mib: int) -> None:
        self.size = mib * CHUNK_BYTES - 4096  # with its manifest, as many chunks
        self.version = -1
        self.cluster = Cluster(folder, NODES, parity=parity, codec=codec)
        self.cluster.configure()
        self.cluster.wait_restored(TIMEOUT_SECONDS)
        for node in self.cluster.nodes:
            node.agent.reserve(0, mib * CHUNK_BYTES)

    def data(self, version: int) -> list[bytes]:
        return [content(version, position, 0, self.size) for position in range(NODES)]

    def protect(self, data: list[bytes], *, streamed: bool = False) -> float:
        """Capture and seal on all nodes; seconds from the last seal until it is protected."""
        self.version += 1
        snapshot = self.cluster.take(self.version, TIMEOUT_SECONDS)
        captures = [capture(node.dir, 0, snapshot, data[p], b"manifest 0") for p, node in enumerate(self.cluster.nodes)]
        for _ in range(0, captures[0].chunks, STREAM_CHUNKS) if streamed else ():
            for each, node in zip(captures, self.cluster.nodes, strict=True):
                each.publish(STREAM_CHUNKS)
                node.agent.captured(0, snapshot)
        for each in captures:
            each.finish()
        start = time.perf_counter()
        for node in self.cluster.nodes:
            node.agent.sealed(0, snapshot)
        self.cluster.wait_protected(self.version, TIMEOUT_SECONDS)
        seconds = time.perf_counter() - start
        for each in captures:
            each.lane.close()
        self.snapshot: SnapshotId = snapshot
        return seconds

    def shares(self) -> tuple[float, float, float]:
        """(copied, sent, coded) of the last snapshot, as shares of all nodes' state; sent as its receivers count it."""
        lasts = [self.cluster.status(p).last for p in range(NODES)]
        state = sum(last.captured_bytes for last in lasts)
        copied, sent, coded = (
            sum(getattr(last, name) for last in lasts) for name in ("copied_bytes", "received_bytes", "coded_bytes")
        )
        return copied / state, sent / state, coded / state

    def parity_share(self) -> float:
        """Files of parity over files of state."""
        size = {
            kind: sum(f.stat().st_size for node in self.cluster.nodes for f in node.dir.glob(f"slot*.{kind}*"))
            for kind in ("lane", "parity")
        }
        return float(size["parity"] / size["lane"])

    def repair(self) -> float:
        """Lose a node; seconds until a spare, which has been waiting, has its bytes."""
        self.cluster.nodes[1].lose()
        self.cluster.replace(1).agent.status()  # it has loaded its codec
        start = time.perf_counter()
        self.cluster.configure(self.snapshot)
        self.cluster.nodes[1].agent.wait_restored(self.cluster.generation, TIMEOUT_SECONDS)
        seconds = time.perf_counter() - start
        self.cluster.wait_restored(TIMEOUT_SECONDS)
        self.cluster.wait_protected(self.snapshot.version, TIMEOUT_SECONDS)
        return seconds


@dataclass(frozen=True)
class Rounds:
    """One figure: each round's seconds, and those of the unit just before it."""

    seconds: list[float]
    units: list[float]

    @property
    def in_units(self) -> float:
        return median([s / u for s, u in zip(self.seconds, self.units, strict=True)])


def rounds_of(folder: Path, mib: int, rounds: int, once: Callable[[int], float]) -> Rounds:
    """``once(round)`` that often, each after a unit of its own."""
    made = Rounds([], [])
    for number in range(rounds):
        made.units.append(unit_seconds(folder, mib * CHUNK_BYTES))
        made.seconds.append(once(number))
    return made


@contextmanager
def bench(folder: Path, parity: int, codec: str, mib: int) -> Iterator[Bench]:
    """A cluster that is stopped in the end."""
    made = Bench(folder / f"{NODES - parity}+{parity}", parity, codec, mib)
    try:
        yield made
    finally:
        made.cluster.stop()


def main() -> None:
    options = parser("From sealed to protected, and back from a lost node: in copies of the same bytes.")
    options.add_argument("--mib", type=int, help="state of each node; default 256, quick 64")
    options.add_argument("--rounds", type=int, help="default 7, quick 3")
    args = options.parse_args()
    mib, rounds = args.mib or (64 if args.quick else 256), args.rounds or (3 if args.quick else 7)
    mark, before = mark_session(), shared_memory_entries()
    report = Report(f"{NODES} nodes of {mib} MiB on {os.cpu_count()} cores (median of {rounds})")
    skipped = []
    with tempfile.TemporaryDirectory(prefix="protect-", dir=SHARED_MEMORY) as tmpfs:
        folder = Path(tmpfs)
        with bench(folder, 1, "auto", mib) as made:
            states = [made.data(0), made.data(1)]
            made.protect(states[1])
            whole = rounds_of(folder, mib, rounds, lambda i: made.protect(states[i % 2]))
            streamed = rounds_of(folder, mib, rounds, lambda i: made.protect(states[(rounds + i) % 2], streamed=True))
            changed = tuple(range(7, 7 + max(1, round(mib * (1 - FROZEN)))))
            frozen = [edited(data, changed, made.version) for data in states[0]]
            made.protect(frozen)
            made.protect([edited(data, changed, made.version) for data in frozen])
            shares, parity_share = made.shares(), made.parity_share()
            repaired = rounds_of(folder, mib, min(3, rounds), lambda _: made.repair())
        report.add("unit: four copies at once", median(whole.units), "s")
        report.add("protect 3+1", median(whole.seconds), "s")
        report.add("protect 3+1", whole.in_units, "units", 7)
        report.add("protect 3+1, left after the seal when streamed", streamed.in_units, "units")
        report.add("parity memory 3+1 over state", parity_share, "ratio", 0.34)
        for name, share in zip(("copied", "sent", "coded"), shares, strict=True):
            report.add(f"{name} with {FROZEN:.0%} frozen, share of the state", share, "ratio", 0.02)
        report.add("repair of a lost node 3+1", repaired.in_units, "units", 8)
        try:
            choose("isal")
        except CodecUnsupported as error:
            skipped.append(f"protect 2+2 with ISA-L: skipped: {error}")
        else:
            with bench(folder, 2, "isal", mib) as made:
                made.protect(states[1])
                whole = rounds_of(folder, mib, rounds, lambda i: made.protect(states[i % 2]))
            report.add("protect 2+2, ISA-L", whole.in_units, "units", 16)
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    report.add("processes and shared memory left behind", len(left), "count", 0)
    report.write(args.json)
    print("\n".join([*skipped, *left]), end="\n" if skipped or left else "")


if __name__ == "__main__":
    main()

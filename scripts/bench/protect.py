"""How long a snapshot takes from sealed to protected, in copies of the same bytes; four nodes' daemons on this machine.

The unit is four processes that copy as many bytes as a node has into warm shared memory, all at once. Since all nodes
share the cores, it bounds what any protecting can do here. It is measured anew before each round, and a figure is the
median of the rounds' own ratios: on a shared machine a unit from another minute says nothing. Beside each ratio of
times stands that of processor seconds, all four daemons' over all four copies': where others use the machine, that one
still means something.

- *protect*: every node has new state, captured and sealed; then all daemons are told at once. Time until the gate says
  that it is protected everywhere, checksums at both ends included.
- *streamed*: the same, but the daemons are told of each 16 MiB while they are captured; what is left after the seal.
- *frozen*: one percent of the state changes; what is copied, sent and coded of it, as shares of all of it.
- *repair*: a node is lost, a spare takes its place; until it has its bytes back. Its processor seconds go on until all
  is protected again.
- *prototype*, with ``--prototype``: another program's figures for the same, in the unit that it measures itself.
"""

from __future__ import annotations

import os
import re
import subprocess
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

from snapshot_nodes import Cluster, capture, content, edited, wait_until  # noqa: E402

from ftrain_snapshot.codec import choose  # noqa: E402
from ftrain_snapshot.control import ControlPage  # noqa: E402
from ftrain_snapshot.errors import CodecUnsupported  # noqa: E402
from ftrain_snapshot.manifest import CHUNK_BYTES  # noqa: E402
from ftrain_snapshot.words import SnapshotId  # noqa: E402

COPIER = ROOT / "scripts" / "bench" / "protect_copy.py"
NODES = 4
TIMEOUT_SECONDS = 60.0
STREAM_CHUNKS = 16
FROZEN = 0.99
PROTOTYPE_TIMEOUT_SECONDS = 900.0
PROTOTYPE_FIGURES = {
    "RAIM-5 3+1 protect, isal, xxh3 on every chunk": "prototype: protect 3+1",
    "RAIM-5 3+1 repair node 0, isal, pulled by 0": "prototype: repair 3+1, without checksums",
    "RS 2+2 protect, isal, xxh3 on every chunk": "prototype: protect 2+2",
}
"""What its lines begin with, of those that have their like here."""


@dataclass(frozen=True)
class Cost:
    """Of one thing that was done."""

    seconds: float
    processor_seconds: float
    """Of all processes that had part in it."""


def unit(folder: Path, size: int, rounds: int = 3) -> Cost:
    """Four processes copying ``size`` bytes at once: the slowest of them, all of them; each in the median round."""
    files = [folder / f"unit{i}" for i in range(NODES)]
    copiers = [
        Popen([sys.executable, str(COPIER), str(file), str(size)], stdin=PIPE, stdout=PIPE, text=True, bufsize=1)
        for file in files
    ]
    costs = []
    for turn in range(rounds + 1):
        if turn:
            for copier in copiers:
                print(file=copier.stdin)
        words = [copier.stdout.readline() for copier in copiers if copier.stdout is not None]
        if turn:
            pairs = [tuple(map(float, word.split())) for word in words]
            costs.append(Cost(max(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)))
    for copier, file in zip(copiers, files, strict=True):
        copier.communicate(timeout=TIMEOUT_SECONDS)
        file.unlink()
    return Cost(median([cost.seconds for cost in costs]), median([cost.processor_seconds for cost in costs]))


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

    def protect(self, data: list[bytes], *, streamed: bool = False) -> Cost:
        """Capture and seal on all nodes; from the last seal until it is protected."""
        self.version += 1
        snapshot = self.cluster.take(self.version, TIMEOUT_SECONDS)
        captures = [capture(node.dir, 0, snapshot, data[p], b"manifest 0") for p, node in enumerate(self.cluster.nodes)]
        for _ in range(0, captures[0].chunks, STREAM_CHUNKS) if streamed else ():
            for each, node in zip(captures, self.cluster.nodes, strict=True):
                each.publish(STREAM_CHUNKS)
                node.agent.captured(0, snapshot)
        for each in captures:
            each.finish()
        spent, start = self.processor_seconds(), time.perf_counter()
        for node in self.cluster.nodes:
            node.agent.sealed(0, snapshot)
        self.wait_protected()
        seconds = time.perf_counter() - start
        cost = Cost(seconds, self.processor_seconds() - spent)
        for each in captures:
            each.lane.close()
        self.snapshot: SnapshotId = snapshot
        return cost

    def processor_seconds(self) -> float:
        """Of the four daemons, from their start."""
        return sum(self.cluster.status(p).cpu_seconds for p in range(NODES))

    def wait_protected(self) -> None:
        """Until the last snapshot is. The gate opens no sooner, and to look at its page takes no daemon's time."""
        page = ControlPage(self.cluster.nodes[0].dir)
        ticket = self.cluster.ticket
        wait_until(lambda: page.gate()[1] >= 0 and page.gate()[0] > ticket, TIMEOUT_SECONDS, "the gate")
        page.close()
        self.cluster.wait_protected(self.version, TIMEOUT_SECONDS)

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

    def repair(self) -> Cost:
        """Lose a node; until a spare, which has been waiting, has its bytes."""
        self.cluster.nodes[1].lose()
        self.cluster.replace(1).agent.status()  # it has loaded its codec
        spent, start = self.processor_seconds(), time.perf_counter()
        self.cluster.configure(self.snapshot)
        self.cluster.nodes[1].agent.wait_restored(self.cluster.generation, TIMEOUT_SECONDS)
        seconds = time.perf_counter() - start
        self.cluster.wait_restored(TIMEOUT_SECONDS)
        self.cluster.wait_protected(self.snapshot.version, TIMEOUT_SECONDS)
        return Cost(seconds, self.processor_seconds() - spent)


@dataclass(frozen=True)
class Rounds:
    """One figure: what each round cost, and the unit just before it."""

    costs: list[Cost]
    units: list[Cost]

    @property
    def in_units(self) -> float:
        return median([c.seconds / u.seconds for c, u in zip(self.costs, self.units, strict=True)])

    @property
    def in_processor_units(self) -> float:
        return median([c.processor_seconds / u.processor_seconds for c, u in zip(self.costs, self.units, strict=True)])

    def add_to(self, report: Report, figure: str, limit: float | None = None) -> None:
        """Both ratios; the limit is on the first."""
        report.add(figure, self.in_units, "units", limit)
        report.add(f"{figure}: processor seconds", self.in_processor_units, "units")


def rounds_of(folder: Path, mib: int, rounds: int, once: Callable[[int], Cost]) -> Rounds:
    """``once(round)`` that often, each after a unit of its own."""
    made = Rounds([], [])
    for number in range(rounds):
        made.units.append(unit(folder, mib * CHUNK_BYTES))
        made.costs.append(once(number))
    return made


def prototype(program: Path, mib: int, per_unit_seconds: float, report: Report) -> str:
    """Add the figures of a program that measures itself, ``raim5_sockets.py``; why not, if it cannot."""
    helpers = program.with_name("isal_ctypes.py")
    if not program.is_file() or not helpers.is_file():
        return f"prototype: skipped: {program} and {helpers.name} beside it are not both there"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "eclib.py").symlink_to(helpers.resolve())
        environment = os.environ | {"S": str(mib), "PYTHONPATH": folder}
        try:
            ran = subprocess.run(
                [sys.executable, str(program)], env=environment, capture_output=True, text=True,
                timeout=PROTOTYPE_TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"prototype: skipped: not done within {PROTOTYPE_TIMEOUT_SECONDS:g} s"
    lines = {words[0]: words[1:] for line in ran.stdout.splitlines() if (words := re.split(r"\s{2,}", line))}
    copied = lines.get("memcpy of the same bytes, 4 processes at once")
    if ran.returncode or copied is None:
        return f"prototype: skipped: it ended with {ran.returncode}: {ran.stderr.strip()[-200:]}"
    unit_ms = float(copied[0].split()[0])
    for line, figure in PROTOTYPE_FIGURES.items():
        if (found := lines.get(line)) is None:
            return f"{figure}: skipped: it failed at {line!r}"
        report.add(figure, float(found[0].split()[0]) / unit_ms, "units")
        spent = re.search(r"cpu +([0-9.]+) s", " ".join(found))
        if spent is not None:
            report.add(f"{figure}: processor seconds", float(spent[1]) / per_unit_seconds, "units")
    return ""


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
    options.add_argument("--prototype", type=Path, metavar="FILE", help="run this raim5_sockets.py, too")
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
        report.add("unit: four copies at once", median([u.seconds for u in whole.units]), "s")
        unit_processor_seconds = median([u.processor_seconds for u in whole.units])
        report.add("unit: processor seconds", unit_processor_seconds, "s")
        report.add("protect 3+1", median([c.seconds for c in whole.costs]), "s")
        whole.add_to(report, "protect 3+1", 7)
        report.add("protect 3+1, left after the seal when streamed", streamed.in_units, "units")
        report.add("parity memory 3+1 over state", parity_share, "ratio", 0.34)
        for name, share in zip(("copied", "sent", "coded"), shares, strict=True):
            report.add(f"{name} with {FROZEN:.0%} frozen, share of the state", share, "ratio", 0.02)
        repaired.add_to(report, "repair of a lost node 3+1", 8)
        try:
            choose("isal")
        except CodecUnsupported as error:
            skipped.append(f"protect 2+2 with ISA-L: skipped: {error}")
        else:
            with bench(folder, 2, "isal", mib) as made:
                made.protect(states[1])
                whole = rounds_of(folder, mib, rounds, lambda i: made.protect(states[i % 2]))
            whole.add_to(report, "protect 2+2, ISA-L", 16)
    if args.prototype is not None and (reason := prototype(args.prototype, mib, unit_processor_seconds, report)):
        skipped.append(reason)
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    report.add("processes and shared memory left behind", len(left), "count", 0)
    report.write(args.json)
    print("\n".join([*skipped, *left]), end="\n" if skipped or left else "")


if __name__ == "__main__":
    main()

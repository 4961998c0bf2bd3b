"""Pure: what was measured of all nodes to a verdict for each, with its reasons in words.

A node is compared with the median of the others; with two nodes that is the other one. What does not depend on others
(a wrong product, a disk that cannot be written) needs no comparison. *Bad* is what would hold up or spoil the job;
*suspicious* is worth a look. Where nodes train while they are measured, rates say little: nothing is bad for its rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from enum import IntEnum
from statistics import median
from typing import NamedTuple

import msgspec

from ftrain.health.words import GpuFigures, NodeFigures, PairFigures
from ftrain_launcher.clock import Offset
from ftrain_launcher.detect.links import loses
from ftrain_launcher.health.links import Pair, locate, poor_links, sick_links, typical
from ftrain_snapshot.messages import LinkFigure


class State(IntEnum):
    """Ordered: the worst finding counts."""

    OK = 0
    SUSPICIOUS = 1
    BAD = 2


class NodeHealth(NamedTuple):
    """Of one node."""

    node: str
    state: State
    reasons: tuple[str, ...]
    """The worst first."""


class Checkup(msgspec.Struct, kw_only=True):
    """All that was measured in one round."""

    nodes: dict[str, NodeFigures | str]
    """In the order of the nodes; or why there are no figures."""
    clocks: dict[str, Offset] = {}
    links: dict[Pair, LinkFigure] = {}
    """By (source, destination)."""
    pairs: dict[Pair, PairFigures | str] = {}
    """All-reduces of two; or why there was none."""
    training: bool = False
    """Nodes held ranks meanwhile."""
    hosts: dict[str, str] = {}
    """By node, as far as they are known; emulated nodes share one."""

    def on_one_host(self, pair: Pair) -> bool:
        """No network is between them: rates say no more than that processors are short."""
        return pair[0] in self.hosts and self.hosts[pair[0]] == self.hosts.get(pair[1])


class _Rate(NamedTuple):
    words: str
    unit: str
    of: Callable[[NodeFigures], float | None]
    suspicious_share: float
    bad_share: float
    """Of the median of the others; 0: never."""


CROWDED_SHARE = 0.5
"""Of a core, or of what the others get of theirs, if there are any."""
RATES = (
    _Rate("multiplies", "GFLOP/s", lambda f: f.matmul_gflops, 0.75, 0.5),
    _Rate("copies memory", "GB/s", lambda f: f.memory_gb_per_second, 0.6, 0.33),
    _Rate("sends to itself", "GB/s", lambda f: f.loopback_gb_per_second, 0.33, 0.0),
    _Rate("writes to disk", "MB/s", lambda f: f.disk_mb_per_second, 0.2, 0.0),
    _Rate("gets", "of a core", lambda f: f.cpu_share, CROWDED_SHARE, 0.0),
    _Rate("has", "GB of shared memory", lambda f: f.arena_bytes / 1e9, 0.5, 0.0),
    _Rate("may use", "cores", lambda f: f.cores, 0.75, 0.0),
)
GPU_SUSPICIOUS_SHARE, GPU_BAD_SHARE = 0.9, 0.75
"""GPUs of one kind are within a few percent of each other."""
BUSY_SHARE = 0.7
"""Who gets less of a core is not judged by how soon it answers."""
CLOCK_SECONDS_MAX = 0.5
DISK_FREE_BYTES_MIN, DISK_FREE_BYTES_FEW = 32 << 20, 1 << 30
ARENA_FREE_BYTES_MIN = 8 << 20
OPEN_FILES_MIN = 1024
ALL_REDUCE_TIMES, ALL_REDUCE_SECONDS = 5.0, 0.1
"""An all-reduce of 1 MiB that takes so many times what it takes others, and at least so long, is slow."""


class _Findings:
    """What is said of each node."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self._of: dict[str, list[tuple[State, str]]] = {node: [] for node in nodes}

    def add(self, node: str, state: State, words: str) -> None:
        if node in self._of:  # of nodes that others were only measured against, nothing is said
            self._of[node].append((state, words))

    def verdicts(self) -> list[NodeHealth]:
        found = []
        for node, said in self._of.items():
            said.sort(key=lambda finding: -finding[0])
            found.append(NodeHealth(node, said[0][0] if said else State.OK, tuple(words for _, words in said)))
        return found


def judge(checkup: Checkup, known: Mapping[str, NodeFigures] = {}) -> list[NodeHealth]:
    """A verdict for each node that was checked. ``known``: figures of others, from an earlier round."""
    findings = _Findings(checkup.nodes)
    figures: dict[str, NodeFigures] = {}
    for node, found in checkup.nodes.items():
        if isinstance(found, str):
            findings.add(node, State.BAD, f"it could not be checked: {found}")
        else:
            figures[node] = found
    all_known = {**known, **figures}
    for node, mine in figures.items():
        others = [theirs for name, theirs in all_known.items() if name != node]
        _alone(findings, node, mine)
        if not others and not checkup.training and mine.cpu_share < CROWDED_SHARE:
            words = f"it gets {mine.cpu_share:.0%} of a core: other processes, or a quota, take the rest"
            findings.add(node, State.SUSPICIOUS, words)
        _rates(findings, node, mine, others, training=checkup.training)
        _gpus(findings, node, mine, [gpu for f in others for gpu in f.gpus], training=checkup.training)
    _equal(findings, all_known)
    for node, offset in checkup.clocks.items():
        if abs(offset.seconds) - offset.error_seconds > CLOCK_SECONDS_MAX:
            findings.add(node, State.SUSPICIOUS, f"its clock is {-offset.seconds:+.1f} s from the controller's")
    _links(findings, checkup)
    _pairs(findings, checkup)
    return findings.verdicts()


def _alone(findings: _Findings, node: str, mine: NodeFigures) -> None:
    """What needs no comparison."""
    if not mine.exact:
        findings.add(node, State.BAD, "its processor computes wrongly (a product of whole numbers has wrong bits)")
    for index, gpu in enumerate(mine.gpus):
        if not gpu.exact:
            findings.add(node, State.BAD, f"GPU {index} computes wrongly (a product of whole numbers has wrong bits)")
    if mine.disk_failure:
        findings.add(node, State.BAD, f"logs cannot be written: {mine.disk_failure}")
    elif mine.disk_free_bytes is not None and mine.disk_free_bytes < DISK_FREE_BYTES_FEW:
        state = State.BAD if mine.disk_free_bytes < DISK_FREE_BYTES_MIN else State.SUSPICIOUS
        findings.add(node, state, f"{mine.disk_free_bytes >> 20} MiB are free where logs are written")
    if mine.arena_free_bytes < ARENA_FREE_BYTES_MIN:
        findings.add(node, State.SUSPICIOUS, f"{mine.arena_free_bytes >> 20} MiB of shared memory are free")
    if mine.open_files_max < OPEN_FILES_MIN:
        findings.add(node, State.SUSPICIOUS, f"a process may open {mine.open_files_max} files only (ulimit -n)")


def _rates(findings: _Findings, node: str, mine: NodeFigures, others: list[NodeFigures], *, training: bool) -> None:
    for rate in RATES:
        value = rate.of(mine)
        theirs = [v for v in map(rate.of, others) if v is not None]
        if value is None or not theirs:
            continue
        usual = median(theirs)
        if value >= rate.suspicious_share * usual or _is_scatter(value, theirs):
            continue
        state = State.BAD if value < rate.bad_share * usual and not training else State.SUSPICIOUS
        findings.add(node, state, f"{rate.words} {value:.3g} {rate.unit}, others {usual:.3g}")


def _is_scatter(value: float, theirs: list[float]) -> bool:
    """The others differ so much among themselves that this one is not special (3 deviations, by the MAD)."""
    usual = median(theirs)
    return len(theirs) > 2 and usual - value < 3 * 1.4826 * median(abs(v - usual) for v in theirs)


def _gpus(findings: _Findings, node: str, mine: NodeFigures, others: list[GpuFigures], *, training: bool) -> None:
    """Each GPU against all others of its kind, those of its own node included."""
    for index, gpu in enumerate(mine.gpus):
        if gpu.failure:
            state = State.SUSPICIOUS if training else State.BAD
            findings.add(node, state, f"GPU {index} could not be checked: {gpu.failure}")
            continue
        for words, unit, field in (
            ("multiplies", "TFLOP/s", "matmul_tflops"),
            ("copies", "GB/s", "memory_gb_per_second"),
        ):
            theirs = [
                getattr(g, field)
                for g in (*mine.gpus, *others)
                if g is not gpu and g.name == gpu.name and not g.failure
            ]
            value = getattr(gpu, field)
            if not theirs or value >= GPU_SUSPICIOUS_SHARE * median(theirs):
                continue
            bad = value < GPU_BAD_SHARE * median(theirs) and not training
            text = f"GPU {index} {words} {value:.3g} {unit}, others {median(theirs):.3g}"
            findings.add(node, State.BAD if bad else State.SUSPICIOUS, text)


def _equal(findings: _Findings, all_known: Mapping[str, NodeFigures]) -> None:
    """What must be the same everywhere, and what equal machines must agree on."""
    same: tuple[tuple[str, Callable[[NodeFigures], Hashable], State], ...] = (
        ("ftrain", lambda f: f.ftrain, State.BAD),
        ("torch", lambda f: f.torch, State.BAD),
        ("Python", lambda f: ".".join(f.python.split(".")[:2]), State.SUSPICIOUS),
        ("GPUs", lambda f: len(f.gpus), State.BAD),
    )
    for words, of, state in same:
        for node, value, usual in _minority(all_known, of):
            worst = State.SUSPICIOUS if usual is None else state
            findings.add(node, worst, f"{words} {value}, others {'differ' if usual is None else usual}")
    alike: dict[Hashable, dict[str, NodeFigures]] = {}
    for node, f in all_known.items():
        alike.setdefault((f.torch, f.cpu_model, f.cpu_capability), {})[node] = f
    for group in alike.values():
        for node, _, _ in _minority(group, lambda f: f.bits):
            words = "a product of fractions has other bits than on equal machines: it may compute wrongly"
            findings.add(node, State.SUSPICIOUS, words)


def _minority(
    figures: Mapping[str, NodeFigures], of: Callable[[NodeFigures], Hashable]
) -> list[tuple[str, Hashable, Hashable]]:
    """(node, its value, the usual one) of those that differ from most; the usual one is None where none prevails."""
    counts = Counter(map(of, figures.values())).most_common()
    if len(counts) < 2:
        return []
    usual = counts[0][0] if counts[0][1] > counts[1][1] else None
    return [(node, of(f), usual) for node, f in figures.items() if of(f) != usual]


def _goodness(link: LinkFigure) -> tuple[bool, float]:
    """What is cut is worse than what is slow."""
    return not link.failure, link.bytes_per_second or 0.0


def _links(findings: _Findings, checkup: Checkup) -> None:
    busy = {node for node, f in checkup.nodes.items() if isinstance(f, str) or f.cpu_share < BUSY_SHARE}
    sick = sick_links(checkup.links, busy)
    nodes, pairs = locate(checkup.links, sick)
    for node in nodes:
        mine = {pair: words for pair, words in sick.items() if node in pair}
        cut = any(checkup.links[pair].failure for pair in mine)
        worst = min(mine, key=lambda pair: _goodness(checkup.links[pair]))
        partners = sorted({other for pair in mine for other in pair} - {node})
        whom = ", ".join(partners) if len(partners) < 4 else f"{len(partners)} nodes"
        text = f"its links to {whom} are sick: {_link(worst, mine[worst])}"
        sure = any(loses(checkup.links[pair]) or not checkup.on_one_host(pair) for pair in mine)
        findings.add(node, State.BAD if cut or (sure and not checkup.training) else State.SUSPICIOUS, text)
    for a, b in pairs:
        found = [pair for pair in ((a, b), (b, a)) if pair in sick]
        text = "; ".join(_link(pair, sick[pair]) for pair in found)
        cut = any(checkup.links[pair].failure for pair in found)
        findings.add(a, State.SUSPICIOUS, text)
        findings.add(b, State.BAD if cut else State.SUSPICIOUS, text + (": one of the two has to go" if cut else ""))

    for pair, words in poor_links({p: f for p, f in checkup.links.items() if p not in sick}, busy).items():
        findings.add(pair[0], State.SUSPICIOUS, f"poor link: {_link(pair, words)}")


def _link(pair: Pair, words: str) -> str:
    return f"{pair[0]} to {pair[1]}: {words}"


def _pairs(findings: _Findings, checkup: Checkup) -> None:
    """All-reduces: who is slow, or fails, with every partner; else it is the pair."""
    seconds = {pair: f.all_reduce_seconds for pair, f in checkup.pairs.items() if isinstance(f, PairFigures)}
    usual = typical(seconds, min)
    sick: dict[Pair, str] = {}
    for pair, found in checkup.pairs.items():
        if isinstance(found, str):
            sick[pair] = found
        elif not found.exact:
            sick[pair] = "its sums are wrong"
        elif found.all_reduce_seconds > max(ALL_REDUCE_SECONDS, ALL_REDUCE_TIMES * usual):
            sick[pair] = f"{found.all_reduce_seconds:.2f} s for 1 MiB (others {usual:.3f})"
    nodes, pairs = locate(checkup.pairs, sick)
    for node in nodes:
        mine = {pair: words for pair, words in sick.items() if node in pair}
        wrong = any(isinstance(found := checkup.pairs[pair], PairFigures) and not found.exact for pair in mine)
        excused = checkup.training or (not wrong and all(map(checkup.on_one_host, mine)))
        text = f"all-reduces with others: {next(iter(mine.values()))}"
        findings.add(node, State.SUSPICIOUS if excused else State.BAD, text)
    for a, b in pairs:
        words = sick.get((a, b)) or sick[b, a]
        for node in (a, b):
            findings.add(node, State.SUSPICIOUS, f"all-reduce of {a} and {b}: {words}")

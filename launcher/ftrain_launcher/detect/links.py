"""Pure: which links to probe, and what the figures of the probes say.

The figures fill a matrix of sources and destinations (C4, arXiv 2406.04594): one hot cell is a link, a hot row a node
that sends badly, a hot column one that receives badly, row and column together a node, and where nothing stands out
the links are not to blame: processors may be busy, or a rank slow. A cell is hot if its link is cut, or much worse than
in quiet times, or, where nobody measured then, than the other cells. Round trips go both ways, so a delay shows in the
cells of both directions; bandwidth and cuts tell the direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_snapshot.messages import LinkFigure

Pair = tuple[int, int]
"""Source and destination, by position."""
Matrix = Mapping[Pair, LinkFigure]

ALL_PAIRS_MAX = 8
"""Among so many nodes all pairs are probed; among more, each with its neighbours at a few distances."""
HOT_FACTOR = 2.5
"""So much worse than usual, and than most other links are now."""
HOT_FACTOR_OF_HANG = 10.0
"""Of a link that brings communication to a stop."""
COMPARED_MIN = 5
"""So many other cells say what is usual, where nobody measured in quiet times."""
RTT_EXCESS_SECONDS_MIN = 0.002
"""A busy machine adds milliseconds to a round trip, and less to the shortest of several."""
LINE_SHARE_MIN = 0.8
"""Of a row's or column's cells that are hot, where its node is to blame."""
HEARD_SECONDS_MAX = 1.5
"""The destination's own probe came in so recently: that direction works."""


class Heat(NamedTuple):
    """How bad one cell is."""

    factor: float
    """So many times worse than usual; infinite: cut."""
    figure: str
    """For people."""


def probe_pairs(positions: Sequence[int]) -> list[Pair]:
    """The directed links among nodes that are worth a probe; their number grows as that of the nodes."""
    nodes = sorted(set(positions))
    count = len(nodes)
    distances = list(range(1, count))
    if count > ALL_PAIRS_MAX:
        near = {1, 2, count // 4, count // 2}
        distances = sorted(near | {count - distance for distance in near})
    return [(nodes[i], nodes[(i + distance) % count]) for i in range(count) for distance in distances]


def best_of(earlier: Matrix, later: Matrix) -> dict[Pair, LinkFigure]:
    """Of each link the best that it has shown: a busy processor makes a probe late, and never early."""
    return {pair: better(earlier.get(pair), figure) for pair, figure in {**earlier, **later}.items()}


def better(old: LinkFigure | None, new: LinkFigure) -> LinkFigure:
    """The best of two measurements of one link. Of two failures the first knows more: connections still stood then."""
    if old is None:
        return new
    if old.failure or new.failure:
        return old if new.failure else new
    return LinkFigure(
        destination=new.destination,
        rtt_seconds=_best(min, old.rtt_seconds, new.rtt_seconds),
        least_rtt_seconds=_best(min, old.least_rtt_seconds, new.least_rtt_seconds),
        bytes_per_second=_best(max, old.bytes_per_second, new.bytes_per_second),
        heard_seconds=new.heard_seconds,
    )


def _best(best: Callable[[float, float], float], a: float | None, b: float | None) -> float | None:
    return best(a, b) if a is not None and b is not None else b if a is None else a


def judge_matrix(
    figures: Matrix, quiet: Matrix, nodes: Mapping[int, str], generation: int, *, hangs: bool = False
) -> Verdict | None:
    """The link or node at fault; None: no link stands out, or too little was measured.

    Args:
        figures: what was measured now; what was not is missing.
        quiet: the same from quiet times, as far as there is any.
        nodes: names by position.
        hangs: communication does not go on at all, so only a link that is cut, or nearly, explains it.
    """
    heats = {pair: heat for pair in figures if (heat := _heat(pair, figures, quiet)) is not None}
    if not heats:
        return None
    level = _quartile([heat.factor for heat in heats.values()]) if len(heats) > COMPARED_MIN else 1.0
    least = (HOT_FACTOR_OF_HANG if hangs else HOT_FACTOR) * level
    hot = {pair: heat for pair, heat in heats.items() if heat.factor >= least}
    if not hot or (len(heats) > COMPARED_MIN and len(hot) == len(heats)):
        return None
    found, links = _explain(hot, set(heats))
    blamed = [f"all links of {nodes.get(node, node)}" for node in found] + [_words(link, nodes) for link in links]
    listed = ", ".join(blamed[:8]) + (f" and {len(blamed) - 8} more" if len(blamed) > 8 else "")
    worst = max(hot, key=lambda pair: hot[pair].factor)
    cut = any(heat.factor == float("inf") for heat in hot.values())
    fine = len(heats) - len(hot)
    return Verdict(
        kind=Kind.COMMUNICATION_HANG if hangs else Kind.COMMUNICATION_SLOW,
        generation=generation,
        nodes=tuple(nodes[node] for node in found if node in nodes),
        links=tuple(links),
        confidence=0.9 if fine or quiet else 0.6,
        sentence=f"{listed}: {'cut' if cut else 'slow'} ({_arrow(worst, nodes)}: {hot[worst].figure}); "
        f"{fine} of {len(heats)} links that were probed are as usual",
        details={f"link {_arrow(pair, nodes)}": heat.figure for pair, heat in sorted(hot.items())[:32]},
    )


def _heat(pair: Pair, figures: Matrix, quiet: Matrix) -> Heat | None:
    """How bad a cell is; None: it says nothing."""
    figure = figures[pair]
    if figure.failure:
        back = figures.get((pair[1], pair[0]))
        heard = back.heard_seconds if back is not None else None
        if heard is not None and heard <= HEARD_SECONDS_MAX:
            return Heat(1.0, "its probes arrive, the answers do not")  # so it is the other direction that is cut
        return Heat(float("inf"), f"cut: {figure.failure}")
    factors = [Heat(1.0, "as usual")]
    rtt, rtt_usual = _least_rtt(figure), _reference(pair, figures, quiet, _least_rtt)
    if rtt and rtt_usual and rtt >= rtt_usual + RTT_EXCESS_SECONDS_MIN:
        factors.append(Heat(rtt / rtt_usual, f"a round trip takes {rtt * 1e3:.1f} ms, not {rtt_usual * 1e3:.1f}"))
    rate, rate_usual = _rate(figure), _reference(pair, figures, quiet, _rate)
    if rate and rate_usual:
        factors.append(Heat(rate_usual / rate, f"{rate / 1e6:.0f} MB/s, not {rate_usual / 1e6:.0f}"))
    return max(factors)


def _least_rtt(figure: LinkFigure) -> float | None:
    return figure.least_rtt_seconds or figure.rtt_seconds


def _rate(figure: LinkFigure) -> float | None:
    return figure.bytes_per_second


def _reference(pair: Pair, figures: Matrix, quiet: Matrix, of: Callable[[LinkFigure], float | None]) -> float | None:
    """What is usual for a cell: its own in quiet times, else what the better of the others have now."""
    if pair in quiet and (usual := of(quiet[pair])):
        return usual
    others = [value for other, figure in figures.items() if other != pair and (value := of(figure))]
    if len(others) < COMPARED_MIN:
        return None
    return _quartile(others) if of is _least_rtt else -_quartile([-value for value in others])


def _quartile(values: list[float]) -> float:
    return sorted(values)[len(values) // 4]


def _explain(hot: Mapping[Pair, Heat], measured: set[Pair]) -> tuple[list[int], list[Link]]:
    """The fewest nodes, senders, receivers and links that explain the hot cells."""
    left, nodes, links = set(hot), [], []
    for node in _by_heat(left):
        row, column = _line(node, measured, 0), _line(node, measured, 1)
        mine = (row | column) & left
        if len(row | column) > 2 and all(_is_hot(line, left) for line in (row, column) if line) and mine:
            nodes.append(node)
            left -= mine
            measured = measured - row - column
    for end in (0, 1):
        for node in _by_heat(left):
            line = _line(node, measured, end)
            if len(line) > 1 and _is_hot(line, left):
                links.append(Link(node, -1) if end == 0 else Link(-1, node))
                left -= line
                measured = measured - line
    return nodes, links + [Link(*pair) for pair in sorted(left)]


def _by_heat(pairs: set[Pair]) -> list[int]:
    """Nodes of these cells, those with the most of them first."""
    count = Counter(node for pair in pairs for node in pair)
    return sorted(count, key=lambda node: (-count[node], node))


def _line(node: int, pairs: set[Pair], end: int) -> set[Pair]:
    """The row (0) or column (1) of a node."""
    return {pair for pair in pairs if pair[end] == node}


def _is_hot(line: set[Pair], hot: set[Pair]) -> bool:
    return len(line & hot) >= LINE_SHARE_MIN * len(line)


def _arrow(pair: Pair, nodes: Mapping[int, str]) -> str:
    return f"{nodes.get(pair[0], pair[0])} -> {nodes.get(pair[1], pair[1])}"


def _words(link: Link, nodes: Mapping[int, str]) -> str:
    if link.destination < 0:
        return f"what {nodes.get(link.source, link.source)} sends"
    if link.source < 0:
        return f"what {nodes.get(link.destination, link.destination)} receives"
    return f"the link {_arrow((link.source, link.destination), nodes)}"

"""Pure: which links to probe, and what the figures of the probes say.

The figures fill a matrix of sources and destinations (C4, arXiv 2406.04594): one hot cell is a link, a hot row a node
that sends badly, a hot column one that receives badly, row and column together a node, and where nothing stands out
the links are not to blame: processors may be busy, or a rank slow.

A cell is hot if nothing gets through, if segments get lost (TCP counts them, in the one direction in which they went),
or if it has become much slower than it was, and that much more than the others: what busy processors do to figures
differs by little from cell to cell, so a gap divides the hot ones from the rest, in most of the rounds: in a single one
the few bursts that met no other work may be that far ahead. Where cells are broken, what is only slower beside them
must be so by much. Round trips go both ways, so a delay shows in the cells of both directions; bandwidth, loss and cuts
tell the direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_snapshot.messages import LinkFigure

Pair = tuple[int, int]
"""Source and destination, by position."""
Matrix = Mapping[Pair, LinkFigure]

ALL_PAIRS_MAX = 8
"""Among so many nodes all pairs are probed; among more, each with its neighbours at a few distances."""
HOT_FACTOR = 3.0
"""So much slower than usual."""
HOT_FACTOR_SURE = 10.0
"""Enough by itself: where it must explain that communication stands still, where other cells are broken, which explains
what was looked into, or where too few others can be compared with."""
GAP = 3.0
"""So much worse is the best of the hot cells than the worst of the others."""
HOT_SHARE_MAX = 0.7
"""Of the cells; where more are slow, it is not the links. One node of three has two thirds of them."""
COMPARED_MIN = 5
"""So many other cells say what is usual, where nobody measured in quiet times, and how much figures differ."""
RTT_EXCESS_SECONDS_MIN = 0.002
"""A busy machine adds milliseconds to a round trip, and less to the shortest of several."""
LOSS_SHARE_MIN = 0.0025
"""Of the segments that were sent: TCP gets no more than 70 MB/s through that over half a millisecond (Mathis 1997);
networks that are well lose a tenth of it."""
LOST_SEGMENTS_MIN = 2
LINE_SHARE_MIN = 0.8
"""Of a row's, a column's or a node's cells that are hot, where these are to blame."""
HALF_SHARE_MIN = 0.6
"""Of a node's row and of its column: loss does not show in each cell every time."""


class Fault(IntEnum):
    """What is wrong with a cell, the worst last."""

    SLOW = 1
    LOSSY = 2
    CLOGGED = 3
    CUT = 4


_WORDS = {
    Fault.SLOW: "slow",
    Fault.LOSSY: "segments get lost",
    Fault.CLOGGED: "next to nothing gets through",
    Fault.CUT: "cut",
}


class Heat(NamedTuple):
    """How bad one cell is."""

    fault: Fault
    factor: float
    """So many times slower than usual; of what is lossy, the share."""
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


def best_of(rounds: Sequence[Matrix]) -> dict[Pair, LinkFigure]:
    """Of each link the best that it has shown: a busy processor makes a probe late, and never early.

    Losses are summed up over all rounds but each link's worst: what happened once is no property of a link.
    """
    pairs = dict.fromkeys(pair for measured in rounds for pair in measured)
    return {pair: _best([measured[pair] for measured in rounds if pair in measured]) for pair in pairs}


def better(old: LinkFigure | None, new: LinkFigure) -> LinkFigure:
    """The best of two measurements of one link."""
    return new if old is None else _best((old, new))


def _best(figures: Sequence[LinkFigure]) -> LinkFigure:
    answered = [figure for figure in figures if not figure.failure]
    if not answered:
        return figures[-1]  # what was heard in the first may be from before the cut
    counted = sorted(answered, key=lambda figure: figure.lost_segments)[: max(1, len(figures) - 1)]
    return LinkFigure(
        destination=answered[-1].destination,
        rtt_seconds=min(_known(figure.rtt_seconds for figure in answered), default=None),
        least_rtt_seconds=min(_known(figure.least_rtt_seconds for figure in answered), default=None),
        bytes_per_second=max(_known(figure.bytes_per_second for figure in answered), default=None),
        heard=answered[-1].heard,
        sent_segments=sum(figure.sent_segments for figure in counted),
        lost_segments=sum(figure.lost_segments for figure in counted),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def judge_matrix(
    rounds: Sequence[Matrix], quiet: Matrix, nodes: Mapping[int, str], generation: int, *, hangs: bool = False
) -> Verdict | None:
    """The link or node at fault; None: no link stands out, or too little was measured.

    Args:
        rounds: what was measured now, once or more often; what was not is missing.
        quiet: the same from quiet times, as far as there is any.
        nodes: names by position.
        hangs: communication does not go on at all, so a link that is only slower does not explain it.
    """
    figures = best_of(rounds)
    hot = _steadily_hot(rounds, figures, quiet, HOT_FACTOR_SURE if hangs else HOT_FACTOR)
    if not hot or (len(figures) > COMPARED_MIN and len(hot) > HOT_SHARE_MAX * len(figures)):
        return None
    found, links = _explain(hot, set(figures))
    blamed = [f"all links of {nodes.get(node, node)}" for node in found] + list(_blamed(links, nodes))
    listed = ", ".join(blamed[:8]) + (f" and {len(blamed) - 8} more" if len(blamed) > 8 else "")
    worst = max(hot, key=lambda pair: hot[pair])
    example = hot[worst].figure if len(hot) == 1 else f"{_arrow(worst, nodes)}: {hot[worst].figure}"
    fine = len(figures) - len(hot)
    return Verdict(
        kind=Kind.COMMUNICATION_HANG if hangs else Kind.COMMUNICATION_SLOW,
        generation=generation,
        nodes=tuple(nodes[node] for node in found if node in nodes),
        links=tuple(links),
        confidence=0.9 if fine or quiet else 0.6,
        sentence=f"{listed}: {_WORDS[hot[worst].fault]} ({example}); "
        f"{fine} of {len(figures)} links that were probed are as usual",
        details={
            f"link {_arrow(pair, nodes)}": f"{_WORDS[heat.fault]}: {heat.figure}"
            for pair, heat in sorted(hot.items())[:32]
        },
    )


def _steadily_hot(rounds: Sequence[Matrix], figures: Matrix, quiet: Matrix, factor_min: float) -> dict[Pair, Heat]:
    """The cells that stand out in the best that was measured; those that are only slower, in most rounds, too."""
    often = Counter(pair for measured in rounds for pair in _hot(measured, quiet, factor_min))
    return {
        pair: heat
        for pair, heat in _hot(figures, quiet, factor_min).items()
        if heat.fault > Fault.SLOW or 2 * often[pair] > len(rounds)
    }


def _hot(figures: Matrix, quiet: Matrix, factor_min: float) -> dict[Pair, Heat]:
    """The cells that stand out."""
    hot = {pair: heat for pair in figures if (heat := _broken(pair, figures)) is not None}
    factor_min = HOT_FACTOR_SURE if hot else factor_min
    for heats in (_late(figures, quiet), _narrow(figures, quiet)):
        hot_from = _gap([heat.factor for heat in heats.values()], factor_min)
        for pair, heat in heats.items():
            if heat.factor >= hot_from:
                hot[pair] = max(heat, hot.get(pair, heat))
    return hot


def _gap(factors: Sequence[float], factor_min: float) -> float:
    """From where on cells are hot: above a wide gap that not too many are above of, and nearer to the worst than to the
    usual."""
    if len(factors) <= COMPARED_MIN:
        return HOT_FACTOR_SURE
    few = int((1 - HOT_SHARE_MAX) * len(factors))
    least = max(factor_min, sqrt(max(factors)))
    steps = list(pairwise(sorted(factors)))[few:]
    return min((above for below, above in steps if above >= least and above >= GAP * below), default=float("inf"))


def _broken(pair: Pair, figures: Matrix) -> Heat | None:
    """What needs no comparison."""
    figure = figures[pair]
    if figure.failure:
        if _only_back(figure, figures.get((pair[1], pair[0]))):
            return None
        return Heat(Fault.CUT if figure.rtt_seconds is None else Fault.CLOGGED, float("inf"), figure.failure)
    if loses(figure):
        words = f"{figure.lost_segments} of {figure.sent_segments} segments got lost on the way"
        return Heat(Fault.LOSSY, figure.lost_segments / figure.sent_segments, words)
    return None


def _only_back(there: LinkFigure, back: LinkFigure | None) -> bool:
    """Whether what does not answer is heard over there: then it is the way back that is cut.

    What small frames get through, in both directions, says nothing of it: not of bursts that are lost (they may be too
    large), nor of a TCP that is dead where beacons pass.
    """
    if back is None or not back.heard or there.rtt_seconds is not None:
        return False
    return not (there.heard and back.failure)


def _late(figures: Matrix, quiet: Matrix) -> dict[Pair, Heat]:
    """How much longer round trips take than usual."""
    heats = {}
    for pair, figure in figures.items():
        rtt, usual = _least_rtt(figure), _reference(pair, figures, quiet, _least_rtt)
        factor = rtt / usual if rtt and usual and rtt >= usual + RTT_EXCESS_SECONDS_MIN else 1.0
        words = f"a round trip takes {(rtt or 0) * 1e3:.1f} ms, not {(usual or 0) * 1e3:.1f}"
        heats[pair] = Heat(Fault.SLOW, factor, words)
    return heats


def _narrow(figures: Matrix, quiet: Matrix) -> dict[Pair, Heat]:
    """How much less than usual gets through."""
    heats = {}
    for pair, figure in figures.items():
        rate, usual = _rate(figure), _reference(pair, figures, quiet, _rate)
        factor = max(1.0, usual / rate) if rate and usual else 1.0
        heats[pair] = Heat(Fault.SLOW, factor, f"{_megabytes(rate)} MB/s, not {_megabytes(usual)}")
    return heats


def _megabytes(rate: float | None) -> str:
    """Of a slow line digits that tell something."""
    megabytes = (rate or 0.0) / 1e6
    return f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.2g}"


def loses(figure: LinkFigure) -> bool:
    """Whether so much gets lost on the way there that TCP suffers."""
    lost = figure.lost_segments
    return lost >= LOST_SEGMENTS_MIN and lost >= LOSS_SHARE_MIN * figure.sent_segments


def _least_rtt(figure: LinkFigure) -> float | None:
    return figure.least_rtt_seconds or figure.rtt_seconds


def _rate(figure: LinkFigure) -> float | None:
    return figure.bytes_per_second


def _reference(pair: Pair, figures: Matrix, quiet: Matrix, of: Callable[[LinkFigure], float | None]) -> float | None:
    """What is usual for a cell: its own in quiet times, if that was no better than most others', else what the better
    of the others have now."""
    better, worse = (min, max) if of is _least_rtt else (max, min)
    if pair in quiet and (usual := of(quiet[pair])):
        then = sorted(_known(map(of, quiet.values())))
        return worse(usual, then[len(then) // 2]) if len(then) > COMPARED_MIN else usual
    others = sorted(_known(of(figure) for other, figure in figures.items() if other != pair), reverse=better is max)
    return others[len(others) // 4] if len(others) >= COMPARED_MIN else None


def _explain(hot: Mapping[Pair, Heat], measured: set[Pair]) -> tuple[list[int], list[Link]]:
    """The fewest nodes, senders, receivers and links that explain the hot cells."""
    left, nodes, links = set(hot), [], []
    for node in _by_heat(left):
        row, column = _line(node, measured, 0), _line(node, measured, 1)
        halves = all(_is_hot(line, left, HALF_SHARE_MIN) for line in (row, column) if line)
        if len(row | column) > 2 and halves and _is_hot(row | column, left):
            nodes.append(node)
            left -= row | column
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


def _is_hot(line: set[Pair], hot: set[Pair], share_min: float = LINE_SHARE_MIN) -> bool:
    return bool(line & hot) and len(line & hot) >= share_min * len(line)


def _arrow(pair: Pair, nodes: Mapping[int, str]) -> str:
    return f"{nodes.get(pair[0], pair[0])} -> {nodes.get(pair[1], pair[1])}"


def _blamed(links: Sequence[Link], nodes: Mapping[int, str]) -> Iterator[str]:
    """In words; both directions of one link are one."""
    for link in links:
        source, destination = (nodes.get(end, end) for end in (link.source, link.destination))
        if link.destination < 0:
            yield f"what {source} sends"
        elif link.source < 0:
            yield f"what {destination} receives"
        elif Link(link.destination, link.source) not in links:
            yield f"the link {source} -> {destination}"
        elif link.source < link.destination:
            yield f"the link {source} <-> {destination}"

"""Pure: which links are sick, and whether it is the links or a node that all of them lead to.

A link is compared with what most nodes reach with their best partner: a median over all links would be that of the sick
ones where one of three nodes is sick. A node is at fault if more than half of its links are sick; those are then
explained. What is left is the fault of a pair, and nobody can say of which of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from statistics import median

from ftrain_launcher.detect.links import loses
from ftrain_snapshot.messages import LinkFigure

Pair = tuple[str, str]
"""Source and destination, or two nodes of which the order does not matter."""

SLOW_SHARE = 0.25
"""Of what most reach: a TCP connection that shares a busy machine may well have half."""
LATE_TIMES, LATE_SECONDS = 10.0, 0.002
"""A shortest round trip so many times that of the others, and at least so long, is late."""
POOR_BYTES_PER_SECOND, POOR_SECONDS = 12.5e6, 0.05
"""100 Mbit/s, and what only leads to other places: worth telling even where all links are so."""


def sick_links(links: Mapping[Pair, LinkFigure], busy: Set[str] = frozenset()) -> dict[Pair, str]:
    """(source, destination) to what is wrong with it, in words; sound ones are left out.

    Of ``busy`` nodes round trips say nothing: each waits for a processor twice.
    """
    rates = {pair: f.bytes_per_second for pair, f in links.items() if f.bytes_per_second is not None}
    trips = {pair: f.least_rtt_seconds for pair, f in links.items() if f.least_rtt_seconds is not None}
    rate = typical(rates, max)
    trip = typical(trips, min)
    found = {}
    for pair, figure in links.items():
        if figure.failure:
            found[pair] = _cut(figure)
        elif loses(figure):
            found[pair] = f"{figure.lost_segments} of {figure.sent_segments} segments lost on the way"
        elif pair in rates and rates[pair] < SLOW_SHARE * rate:
            found[pair] = f"{rates[pair] / 1e6:.1f} MB/s (others {rate / 1e6:.0f})"
        elif busy.isdisjoint(pair) and pair in trips and trips[pair] > max(LATE_SECONDS, LATE_TIMES * trip):
            found[pair] = f"a round trip of {trips[pair] * 1e3:.1f} ms (others {trip * 1e3:.2f})"
    return found


def poor_links(links: Mapping[Pair, LinkFigure], busy: Set[str] = frozenset()) -> dict[Pair, str]:
    """(source, destination) to what is little in any case, though it may be what the others have."""
    found = {}
    for pair, figure in links.items():
        rate, trip = figure.bytes_per_second, figure.least_rtt_seconds
        if rate is not None and rate < POOR_BYTES_PER_SECOND:
            found[pair] = f"{rate / 1e6:.1f} MB/s"
        elif busy.isdisjoint(pair) and trip is not None and trip > POOR_SECONDS:
            found[pair] = f"a round trip of {trip * 1e3:.1f} ms"
    return found


def _cut(figure: LinkFigure) -> str:
    """What does not come back may be lost on either way, unless the other side is still heard."""
    one_way = figure.heard and figure.rtt_seconds is None
    return figure.failure + (", but it is heard: what goes there is lost" if one_way else "")


def typical(values: Mapping[Pair, float], best: Callable[[float, float], float]) -> float:
    """What most nodes reach with their best partner; 0: nothing is known."""
    of_node: dict[str, float] = {}
    for pair, value in values.items():
        for node in pair:
            of_node[node] = best(of_node.get(node, value), value)
    return median(of_node.values()) if of_node else 0.0


def locate(measured: Iterable[Pair], sick: Iterable[Pair]) -> tuple[list[str], list[Pair]]:
    """(nodes at fault, the worst first; pairs that no such node explains, each in one order)."""
    partners: dict[str, set[str]] = {}
    bad: dict[str, set[str]] = {}
    for pairs, into in ((measured, partners), (sick, bad)):
        for a, b in pairs:
            into.setdefault(a, set()).add(b)
            into.setdefault(b, set()).add(a)
    nodes = []
    while (worst := _worst(partners, bad)) is not None:
        nodes.append(worst)
        for table in (partners, bad):
            for other in table.pop(worst, set()):
                table[other].discard(worst)
    return nodes, sorted({(min(a, b), max(a, b)) for a, others in bad.items() for b in others})


def _worst(partners: Mapping[str, set[str]], bad: Mapping[str, set[str]]) -> str | None:
    """The node with the greatest share of sick links, if that is more than half of several."""
    shares = {node: len(bad.get(node, ())) / len(others) for node, others in partners.items() if len(others) > 1}
    worst = max(shares, key=lambda node: (shares[node], len(bad.get(node, ()))), default=None)
    return worst if worst is not None and shares[worst] > 0.5 else None

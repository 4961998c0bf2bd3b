"""Which links are probed, and what a matrix of figures says."""

from __future__ import annotations

import msgspec
import pytest
from link_figures import recorded

from ftrain_launcher.detect.links import best_of, judge_matrix, probe_pairs
from ftrain_launcher.detect.reached import judge_reach
from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_snapshot.messages import LinkFigure

NODES = {position: f"node{position}" for position in range(4)}
Matrix = dict[tuple[int, int], LinkFigure]


def figures(nodes: int = 4, rtt_seconds: float = 0.0003, rate: float = 1e9, noise: float = 0.0) -> Matrix:
    return {
        (a, b): LinkFigure(b, rtt_seconds, rtt_seconds * (1 + noise * (a + b)), rate * (1 - noise * (a - b) / 9))
        for a, b in probe_pairs(range(nodes))
    }


def delayed(matrix: Matrix, *pairs: tuple[int, int], seconds: float = 0.05, rate: float = 2e7) -> Matrix:
    """A round trip goes both ways, so a delay shows in both cells."""
    both = {*pairs, *((b, a) for a, b in pairs)}
    return {
        p: LinkFigure(p[1], seconds, seconds, rate if p in pairs else 1e9) if p in both else f
        for p, f in matrix.items()
    }


def limited(matrix: Matrix, *pairs: tuple[int, int], rate: float = 5e7) -> Matrix:
    return {p: LinkFigure(p[1], 0.0003, 0.0003, rate) if p in pairs else f for p, f in matrix.items()}


def cut(matrix: Matrix, *pairs: tuple[int, int]) -> Matrix:
    """Cut directions: no probe gets through either way, and the other direction's are still heard."""
    found = {}
    for (a, b), figure in matrix.items():
        if (a, b) in pairs or (b, a) in pairs:
            figure = LinkFigure(b, failure="timeout", heard=(b, a) not in pairs)
        found[a, b] = figure
    return found


def judge(measured: Matrix | list[Matrix], quiet: Matrix | None = None, *, hangs: bool = False) -> Verdict | None:
    rounds = measured if isinstance(measured, list) else [measured]
    return judge_matrix(rounds, {} if quiet is None else quiet, NODES, 1, hangs=hangs)


def test_among_few_nodes_all_pairs_are_probed_and_among_many_some_of_each() -> None:
    assert set(probe_pairs([0, 1, 2])) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert probe_pairs([7]) == []
    many = probe_pairs(range(1000))
    assert len(many) == len(set(many)) <= 8000
    assert {a for a, _ in many} == {b for _, b in many} == set(range(1000))


@pytest.mark.parametrize("quiet", [None, figures()])
def test_a_hot_cell_is_a_link(quiet: Matrix | None) -> None:
    verdict = judge(limited(figures(), (1, 2)), quiet)
    assert verdict is not None
    assert (verdict.kind, verdict.links, verdict.nodes) == (Kind.COMMUNICATION_SLOW, (Link(1, 2),), ())
    assert "the link node1 -> node2: slow (50 MB/s, not 1000)" in verdict.sentence


@pytest.mark.parametrize("quiet", [None, figures()])
def test_a_delay_shows_in_both_directions(quiet: Matrix | None) -> None:
    verdict = judge(delayed(figures(), (1, 2)), quiet)
    assert verdict is not None
    assert verdict.links == (Link(1, 2), Link(2, 1))


@pytest.mark.parametrize("quiet", [None, figures()])
def test_a_hot_row_is_a_sender_and_a_hot_column_a_receiver(quiet: Matrix | None) -> None:
    sender = judge(limited(figures(), (2, 0), (2, 1), (2, 3)), quiet)
    receiver = judge(limited(figures(), (0, 2), (1, 2), (3, 2)), quiet)
    assert sender is not None
    assert sender.links == (Link(2, -1),)
    assert receiver is not None
    assert receiver.links == (Link(-1, 2),)


@pytest.mark.parametrize("nodes", [3, 4])
@pytest.mark.parametrize("known", [True, False])
def test_row_and_column_are_a_node(nodes: int, known: bool) -> None:
    bad = [(1, other) for other in range(nodes) if other != 1]
    verdict = judge(delayed(figures(nodes), *bad), figures(nodes) if known else None)
    assert verdict is not None
    assert (verdict.nodes, verdict.links) == (("node1",), ())


@pytest.mark.parametrize(
    ("matrix", "quiet"),
    [
        (figures(), figures()),
        (figures(), {}),
        (figures(noise=0.1), figures()),
        (figures(rtt_seconds=0.004, rate=2e8), figures()),
        (figures(2), {}),
        ({}, figures()),
    ],
    ids=["as usual", "never measured before", "noise", "all slower: processors are busy", "two nodes", "nothing"],
)
def test_nothing_stands_out(matrix: Matrix, quiet: Matrix) -> None:
    assert judge(matrix, quiet) is None


def test_of_two_nodes_quiet_times_tell() -> None:
    verdict = judge(delayed(figures(2), (0, 1)), figures(2))
    assert verdict is not None
    assert verdict.links == (Link(0, 1), Link(1, 0))


def test_a_link_that_is_cut_one_way() -> None:
    verdict = judge(cut(figures(), (0, 3)), figures(), hangs=True)
    assert verdict is not None
    assert (verdict.kind, verdict.links) == (Kind.COMMUNICATION_HANG, (Link(0, 3),))
    assert "cut" in verdict.sentence


def test_a_link_that_is_cut_both_ways() -> None:
    verdict = judge(cut(figures(), (0, 3), (3, 0)), hangs=True)
    assert verdict is not None
    assert verdict.links == (Link(0, 3), Link(3, 0))
    assert verdict.sentence.startswith("the link node0 <-> node3: cut (node0 -> node3: timeout); 10 of 12")


def test_the_newest_round_tells_the_direction() -> None:
    """What was heard in the first may have come in before the cut."""
    first = {p: msgspec.structs.replace(f, heard=bool(f.failure)) for p, f in cut(figures(), (0, 3)).items()}
    verdict = judge([first, cut(figures(), (0, 3))], hangs=True)
    assert verdict is not None
    assert verdict.links == (Link(0, 3),)


def test_of_beacons_that_pass_both_ways_none_is_cleared_where_nothing_else_does() -> None:
    matrix = {
        p: LinkFigure(p[1], failure="timeout", heard=True) if set(p) == {0, 3} else f for p, f in figures().items()
    }
    verdict = judge(matrix, hangs=True)
    assert verdict is not None
    assert verdict.links == (Link(0, 3), Link(3, 0))


def test_what_is_too_large_for_a_link_is_lost_on_the_way_there_though_beacons_pass() -> None:
    """Small frames are answered, so both sides are heard; bursts get through one way only."""
    matrix = {p: msgspec.structs.replace(f, heard=True) for p, f in figures().items()}
    matrix[0, 3] = LinkFigure(3, 0.0003, 0.0003, failure="it answers, but 64 KiB did not get through", heard=True)
    verdict = judge(matrix, hangs=True)
    assert verdict is not None
    assert verdict.links == (Link(0, 3),)


def test_a_node_that_is_cut_off_answers_nobody_and_is_not_asked() -> None:
    matrix = {p: f for p, f in cut(figures(), (0, 2), (1, 2), (3, 2), (2, 0), (2, 1), (2, 3)).items() if p[0] != 2}
    verdict = judge(matrix, hangs=True)
    assert verdict is not None
    assert verdict.nodes == ("node2",)


def test_a_slower_link_does_not_explain_a_hang() -> None:
    assert judge(limited(figures(), (1, 2), rate=2e8), figures(), hangs=True) is None


def lossy(matrix: Matrix, *pairs: tuple[int, int], lost: int = 8, sent: int = 800) -> Matrix:
    return {
        p: msgspec.structs.replace(f, sent_segments=sent, lost_segments=lost if p in pairs else 0)
        for p, f in matrix.items()
    }


@pytest.mark.parametrize("hangs", [False, True])
def test_a_link_that_loses_segments_is_named_in_the_direction_in_which_they_went(hangs: bool) -> None:
    verdict = judge(lossy(figures(), (1, 2)), figures(), hangs=hangs)
    assert verdict is not None
    assert (verdict.links, verdict.nodes) == ((Link(1, 2),), ())
    assert "segments get lost (8 of 800 segments got lost on the way)" in verdict.sentence


def test_a_node_that_loses_segments_need_not_show_it_in_each_cell() -> None:
    mine = [pair for pair in figures() if 1 in pair]
    verdict = judge(lossy(figures(), *mine[:-1]), figures())
    assert verdict is not None
    assert (verdict.nodes, verdict.links) == (("node1",), ())


def test_few_losses_and_losses_everywhere_accuse_nobody() -> None:
    assert judge(lossy(figures(), (1, 2), lost=1), figures()) is None
    assert judge(lossy(figures(), (1, 2), lost=2, sent=4000), figures()) is None
    assert judge(lossy(figures(), *figures()), figures()) is None


def test_each_link_is_forgiven_its_worst_round() -> None:
    good, bad = lossy(figures()), lossy(figures(), (1, 2))
    assert best_of([bad])[1, 2].lost_segments == 8
    assert judge([bad, good, good], figures()) is None
    summed = best_of([bad, lossy(figures(), (1, 2), lost=2), lossy(figures(), (1, 2), lost=3)])[1, 2]
    assert (summed.lost_segments, summed.sent_segments) == (5, 1600)


def test_slow_cells_are_divided_from_the_others_by_a_gap() -> None:
    """Processors that are busy make figures worse by factors that differ little from one to the next."""
    pairs = list(figures())
    uneven = {p: LinkFigure(p[1], 3e-4, 3e-4, 1e9 / 1.4**n) for n, p in enumerate(pairs)}
    assert judge(uneven, figures()) is None
    one_more = {**uneven, (1, 2): LinkFigure(2, 3e-4, 3e-4, 1e9 / 1.4**30)}
    verdict = judge(one_more, figures())
    assert verdict is not None
    assert verdict.links == (Link(1, 2),)


@pytest.mark.parametrize("known", [True, False], ids=["with quiet times", "without"])
@pytest.mark.parametrize(
    ("name", "nodes", "links"),
    [
        ("loss both ways", (), (Link(1, 2), Link(2, 1))),
        ("loss one way", (), (Link(1, 2),)),
        ("rate", ("node1",), ()),
        ("delay", ("node1",), ()),
    ],
)
def test_what_real_probes_showed(name: str, nodes: tuple[str, ...], links: tuple[Link, ...], known: bool) -> None:
    quiet = best_of(recorded("quiet")) if known else {}
    for rounds in (recorded(name), recorded(name)[:2]):
        verdict = judge(rounds, quiet)
        assert verdict is not None
        assert (verdict.nodes, verdict.links) == (nodes, links)


def test_what_real_probes_showed_of_sound_links_on_a_busy_machine() -> None:
    quiet, busy = recorded("quiet"), recorded("busy")
    for measured in (*quiet, *busy, best_of(quiet), best_of(busy)):
        for usual in ({}, quiet[0], best_of(quiet), best_of([*quiet, *busy])):
            assert judge(measured, usual) is None


@pytest.mark.parametrize("known", [True, False], ids=["with quiet times", "without"])
@pytest.mark.parametrize("look", [slice(3), slice(3, 6)])
def test_where_processors_are_crowded_no_link_is_slow_beside_one_that_is_cut(look: slice, known: bool) -> None:
    """A few bursts that met no other work were far ahead: of all rounds the best have a gap."""
    rounds, quiet = recorded("crowded, a link cut")[look], best_of(recorded("quiet")) if known else {}
    verdict = judge(rounds, quiet)
    assert verdict is not None
    assert (verdict.nodes, verdict.links) == ((), (Link(1, 3), Link(3, 1)))
    without = [{pair: figure for pair, figure in cells.items() if set(pair) != {1, 3}} for cells in rounds]
    assert judge(without, quiet) is None


def test_what_is_slow_in_most_rounds_is_slow() -> None:
    slow, fine = limited(figures(), (1, 2)), figures()
    assert judge([slow, fine, slow], fine) is None, "the best that it has shown is fine"
    crowded = figures(rate=5e7)
    found = judge([slow, crowded, slow], fine)
    assert found is not None
    assert found.links == (Link(1, 2),)
    assert judge([slow, crowded], fine) is judge([slow, crowded, crowded], fine) is None


def test_what_answers_and_lets_nothing_large_through_is_not_called_cut() -> None:
    matrix = figures()
    matrix[0, 3] = LinkFigure(3, 0.01, 0.02, failure="it answers, but 64 KiB did not get through within 1 s")
    verdict = judge(matrix)
    assert verdict is not None
    assert "the link node0 -> node3: next to nothing gets through (it answers, but 64 KiB" in verdict.sentence
    narrow = judge(limited(figures(), (1, 2), rate=7e4), figures())
    assert narrow is not None
    assert "0.07 MB/s, not 1000" in narrow.sentence


def test_a_probe_that_was_late_once_is_no_slow_link() -> None:
    quiet, late = figures(), delayed(figures(), (0, 1), seconds=0.02)
    assert judge(late, quiet) is not None
    assert judge([late, figures()], quiet) is None
    assert judge([late, late, late], quiet) is not None
    lost = {**figures(), (2, 3): LinkFigure(3, failure="timeout")}
    assert judge([lost, figures()], quiet) is None
    assert judge([lost, lost], quiet) is not None


def test_a_node_that_only_some_still_reach_runs_and_a_link_is_cut() -> None:
    names = {n: f"node-{n}" for n in range(4)}
    fine, cut = LinkFigure(2, 1e-3, 1e-3), LinkFigure(2, failure="no answer within 1 s")
    verdict = judge_reach({(0, 2): cut, (1, 2): fine, (3, 2): fine}, names, 7)
    assert verdict is not None
    assert (verdict.kind, verdict.generation, verdict.ranks, verdict.nodes) == (Kind.COMMUNICATION_HANG, 7, (), ())
    assert verdict.links == (Link(0, 2), Link(2, 0))
    assert verdict.sentence == (
        "node-2 runs, and is reached from node-1, node-3, but not from node-0: the link is cut, one way or both"
    )


def test_whom_all_reach_or_nobody_does_has_no_cut_link() -> None:
    fine, cut = LinkFigure(2, 1e-3, 1e-3), LinkFigure(2, failure="no answer within 1 s")
    for figures in ({}, {(0, 2): cut}, {(0, 2): cut, (1, 2): cut}, {(0, 2): fine, (1, 2): fine}):
        assert judge_reach(figures, {}, 1) is None

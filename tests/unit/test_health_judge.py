"""Who is sick: made-up figures of nodes and links to verdicts in words."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.health.words import GpuFigures, NodeFigures, PairFigures
from ftrain_launcher.clock import Offset
from ftrain_launcher.health.judge import Checkup, State, judge
from ftrain_launcher.health.links import locate, sick_links
from ftrain_launcher.health.schedule import apart, rounds
from ftrain_snapshot.messages import LinkFigure

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)
SOUND = NodeFigures(
    python="3.11.7",
    torch="2.13.0",
    ftrain="0.1.0",
    cpu_model="EPYC",
    cpu_capability="AVX2",
    cores=8.0,
    open_files_max=65536,
    matmul_gflops=60.0,
    cpu_share=1.0,
    exact=True,
    bits="aa",
    memory_gb_per_second=16.0,
    loopback_gb_per_second=2.5,
    disk_mb_per_second=200.0,
    disk_free_bytes=1 << 40,
    arena_bytes=1 << 36,
    arena_free_bytes=1 << 36,
)
FAST = LinkFigure(0, 3e-4, 2e-4, 900e6)
SLOW = LinkFigure(0, 3e-4, 2e-4, 20e6)
LATE = LinkFigure(0, 0.03, 0.03, 900e6)
CUT = LinkFigure(0, failure="no answer within 1 s", heard=True)


def but(**changes: object) -> NodeFigures:
    return msgspec.structs.replace(SOUND, **changes)


def names(count: int) -> list[str]:
    return [f"node-{n}" for n in range(count)]


def links(count: int, **of: LinkFigure) -> dict[tuple[str, str], LinkFigure]:
    """All links, fast but for ``n0_1=SLOW`` (from 0 to 1) or ``n2=SLOW`` (to and from 2)."""
    found = dict.fromkeys(permutations(names(count), 2), FAST)
    for key, figure in of.items():
        source, _, destination = key[1:].partition("_")
        for pair in found:
            ends = (f"node-{source}", f"node-{destination}")
            if pair == ends or (not destination and ends[0] in pair):
                found[pair] = figure
    return found


def judged(*figures: NodeFigures | str, training: bool = False, **more: object) -> dict[str, tuple[str, str]]:
    """Node to (state, reasons), sound ones left out."""
    checkup = Checkup(nodes=dict(zip(names(len(figures)), figures, strict=True)), training=training, **more)
    found = judge(checkup)
    assert [health.node for health in found] == names(len(figures))
    return {h.node: (h.state.name, "; ".join(h.reasons)) for h in found if h.state is not State.OK or h.reasons}


def test_equal_nodes_are_sound():
    assert judged(*[SOUND] * 4, links=links(4)) == {}
    assert judged(SOUND) == {}


def test_a_machine_alone_is_told_that_others_use_it_unless_its_own_ranks_do():
    crowded = but(cpu_share=0.06)
    words = "it gets 6% of a core: other processes, or a quota, take the rest"
    assert judged(crowded) == {"node-0": ("SUSPICIOUS", words)}
    assert judged(crowded, training=True) == judged(crowded, crowded) == {}


@pytest.mark.parametrize("others", [1, 2, 7])
@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({"matmul_gflops": 20.0}, "BAD", "multiplies 20 GFLOP/s, others 60"),
        ({"matmul_gflops": 40.0}, "SUSPICIOUS", "multiplies 40 GFLOP/s, others 60"),
        ({"memory_gb_per_second": 4.0}, "BAD", "copies memory 4 GB/s, others 16"),
        ({"cpu_share": 0.3}, "SUSPICIOUS", "gets 0.3 of a core, others 1"),
        ({"disk_mb_per_second": 9.0}, "SUSPICIOUS", "writes to disk 9 MB/s, others 200"),
        ({"exact": False}, "BAD", "computes wrongly"),
        ({"disk_failure": "/logs: read-only"}, "BAD", "/logs: read-only"),
        ({"disk_free_bytes": 1 << 20}, "BAD", "1 MiB are free where logs"),
        ({"arena_free_bytes": 1 << 20}, "SUSPICIOUS", "1 MiB of shared memory"),
        ({"open_files_max": 256}, "SUSPICIOUS", "ulimit -n"),
    ],
)
def test_one_that_differs_is_named_and_no_other(others, change, state, words):
    (found,) = judged(*[SOUND] * others, but(**change)).items()
    assert found[0] == f"node-{others}"
    assert found[1][0] == state
    assert words in found[1][1]


def test_beside_training_nobody_is_bad_for_a_rate_but_for_wrong_sums():
    assert judged(SOUND, SOUND, but(matmul_gflops=10.0), training=True)["node-2"][0] == "SUSPICIOUS"
    assert judged(SOUND, SOUND, but(exact=False), training=True)["node-2"][0] == "BAD"
    assert judged(*[SOUND] * 3, links=links(3, n2=SLOW), training=True)["node-2"][0] == "SUSPICIOUS"
    assert judged(*[SOUND] * 3, links=links(3, n2=CUT), training=True)["node-2"][0] == "BAD"


def test_where_all_differ_from_each_other_nobody_is_special():
    spread = [but(matmul_gflops=g) for g in (20.0, 35.0, 60.0, 100.0, 140.0)]
    assert judged(*spread) == {}


def test_a_node_that_could_not_be_checked_is_bad_and_disturbs_no_comparison():
    assert judged(SOUND, "its agent is not connected", SOUND) == {
        "node-1": ("BAD", "it could not be checked: its agent is not connected")
    }


def test_versions_must_be_those_of_most_and_with_two_nobody_knows():
    assert judged(SOUND, but(torch="2.12.0"), SOUND) == {"node-1": ("BAD", "torch 2.12.0, others 2.13.0")}
    assert judged(SOUND, but(python="3.12.1"), SOUND)["node-1"][0] == "SUSPICIOUS"
    assert judged(SOUND, but(python="3.11.9"), SOUND) == {}
    assert {state for state, _ in judged(SOUND, but(ftrain="0.2.0")).values()} == {"SUSPICIOUS"}


def test_other_bits_are_suspicious_only_on_equal_machines():
    assert list(judged(SOUND, SOUND, but(bits="bb"))) == ["node-2"]
    assert judged(SOUND, SOUND, but(bits="bb", cpu_model="Xeon")) == {}
    assert sorted(judged(SOUND, but(bits="bb"))) == ["node-0", "node-1"]


def test_gpus_are_compared_with_all_of_their_kind():
    gpu = GpuFigures(name="H100", matmul_tflops=600.0, memory_gb_per_second=2000.0)
    slow = msgspec.structs.replace(gpu, matmul_tflops=400.0)
    other_kind = GpuFigures(name="A100", matmul_tflops=250.0, memory_gb_per_second=1300.0)
    assert judged(but(gpus=(gpu, gpu)), but(gpus=(gpu, slow))) == {
        "node-1": ("BAD", "GPU 1 multiplies 400 TFLOP/s, others 600")
    }
    assert judged(but(gpus=(gpu,)), but(gpus=(other_kind,))) == {}
    assert "computes wrongly" in judged(but(gpus=(msgspec.structs.replace(gpu, exact=False),)))["node-0"][1]
    assert judged(but(gpus=(gpu, gpu)), but(gpus=(gpu,)), but(gpus=(gpu, gpu)))["node-1"] == ("BAD", "GPUs 1, others 2")
    lost = GpuFigures(name="cuda:0", failure="out of memory")
    assert judged(but(gpus=(lost,)))["node-0"] == ("BAD", "GPU 0 could not be checked: out of memory")


def test_a_clock_is_compared_with_the_controllers():
    clocks = {"node-0": Offset(-3.0, 0.01), "node-1": Offset(0.4, 0.01), "node-2": Offset(2.0, 1.8)}
    assert judged(SOUND, SOUND, SOUND, clocks=clocks) == {
        "node-0": ("SUSPICIOUS", "its clock is +3.0 s from the controller's")
    }


def test_figures_that_are_known_from_before_are_compared_with_but_not_judged():
    checkup = Checkup(nodes={"node-9": but(matmul_gflops=20.0)})
    (health,) = judge(checkup, {"node-0": SOUND, "node-1": but(matmul_gflops=1.0)})
    assert (health.node, health.state) == ("node-9", State.SUSPICIOUS)  # others: 30


# Links.


@pytest.mark.parametrize("count", [3, 4, 5, 16])
@pytest.mark.parametrize("figure", [SLOW, LATE, CUT])
def test_a_node_all_of_whose_links_are_sick_is_at_fault(count, figure):
    found = judged(*[SOUND] * count, links=links(count, n1=figure))
    assert list(found) == ["node-1"]
    assert found["node-1"][0] == "BAD"
    assert "its links to " + ("node-0, node-2" if count < 5 else f"{count - 1} nodes") in found["node-1"][1]


def test_of_a_nodes_sick_links_the_worst_is_told():
    measured = links(4, n2=SLOW)
    measured["node-2", "node-3"] = msgspec.structs.replace(SLOW, bytes_per_second=5e6)
    assert "node-2 to node-3: 5.0 MB/s (others 900)" in judged(*[SOUND] * 4, links=measured)["node-2"][1]
    measured["node-3", "node-2"] = CUT
    assert "node-3 to node-2: no answer" in judged(*[SOUND] * 4, links=measured)["node-2"][1]


def test_who_is_busy_is_not_judged_by_how_soon_it_answers():
    found = judged(SOUND, but(cpu_share=0.6), SOUND, links=links(3, n1=LATE))
    assert found == {}
    assert list(judged(SOUND, but(cpu_share=0.6), SOUND, links=links(3, n1=SLOW))) == ["node-1"]


def test_on_one_host_no_node_is_bad_for_a_rate() -> None:
    """A crowded machine, with four emulated nodes on it: 34 MB/s and 1.8 GB/s were the same loopback, seconds apart."""
    host = dict.fromkeys(names(4), "one")
    late = {("node-1", other): PairFigures(2.0, True) for other in ("node-0", "node-2", "node-3")}
    sound = {pair: PairFigures(0.01, True) for pair in permutations(("node-0", "node-2", "node-3"), 2)}
    slow = links(4, n1=SLOW)
    assert judged(*[SOUND] * 4, links=slow)["node-1"][0] == "BAD"
    assert judged(*[SOUND] * 4, links=slow, hosts=host)["node-1"][0] == "SUSPICIOUS"
    assert judged(*[SOUND] * 4, links=links(4, n1=CUT), hosts=host)["node-1"][0] == "BAD"
    assert judged(*[SOUND] * 4, pairs=late | sound)["node-1"][0] == "BAD"
    assert judged(*[SOUND] * 4, pairs=late | sound, hosts=host)["node-1"][0] == "SUSPICIOUS"
    never = dict.fromkeys(late, "the two did not meet within 15 s")
    assert judged(*[SOUND] * 4, pairs=never | sound)["node-1"][0] == "BAD"
    assert judged(*[SOUND] * 4, pairs=never | sound, hosts=host)["node-1"][0] == "SUSPICIOUS"
    wrong = {pair: PairFigures(0.01, False) for pair in late}
    assert judged(*[SOUND] * 4, pairs=wrong | sound, hosts=host)["node-1"][0] == "BAD"


@pytest.mark.parametrize("count", [3, 4, 5, 16])
def test_a_sick_pair_is_told_of_at_both(count):
    found = judged(*[SOUND] * count, links=links(count, n0_1=SLOW))
    assert found == {f"node-{n}": ("SUSPICIOUS", "node-0 to node-1: 20.0 MB/s (others 900)") for n in (0, 1)}


def test_of_a_pair_that_is_cut_one_has_to_go():
    found = judged(*[SOUND] * 3, links=links(3, n0_1=CUT))
    assert {node: state for node, (state, _) in found.items()} == {"node-0": "SUSPICIOUS", "node-1": "BAD"}
    assert "but it is heard: what goes there is lost" in found["node-1"][1]
    assert {n: s for n, (s, _) in judged(SOUND, SOUND, links=links(2, n0=CUT)).items()} == {
        "node-0": "SUSPICIOUS",
        "node-1": "BAD",
    }


def test_two_sick_nodes_are_both_found():
    assert sorted(judged(*[SOUND] * 8, links=links(8, n1=SLOW, n5=CUT))) == ["node-1", "node-5"]


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("figure", [LinkFigure(0, 3e-4, 2e-4, 2e6), LinkFigure(0, 0.1, 0.1, 900e6)])
def test_what_is_poor_in_any_case_is_told_but_where_all_are_so_nobody_is_bad(count, figure):
    found = judged(*[SOUND] * count, links=dict.fromkeys(links(count), figure))
    assert {state for state, _ in found.values()} == {"SUSPICIOUS"}
    assert len(found) == count


@few
@given(st.integers(3, 12), st.data())
def test_nobody_is_at_fault_for_half_of_its_links_or_less(count, data):
    every = list(permutations(names(count), 2))
    sick = data.draw(st.lists(st.sampled_from(every), unique=True))
    nodes, pairs = locate(every, sick)
    for node in nodes[:1]:
        assert len({frozenset(p) for p in sick if node in p}) > (count - 1) / 2
    # Everything that is sick is explained, by a node or by itself.
    assert {frozenset(p) for p in sick if not set(p) & set(nodes)} == {frozenset(p) for p in pairs}


def test_links_that_were_not_measured_are_not_sick():
    assert sick_links({}) == {}
    assert sick_links({("a", "b"): LinkFigure(0, 1e-4, 1e-4)}) == {}
    lossy = LinkFigure(0, 1e-4, 1e-4, sent_segments=1000, lost_segments=60)
    assert sick_links({("a", "b"): lossy}) == {("a", "b"): "60 of 1000 segments lost on the way"}


# All-reduces.


def test_who_is_slow_with_both_partners_is_told_from_a_slow_pair():
    fast, slow = PairFigures(0.002, True), PairFigures(0.9, True)
    turns = [pair for turn in rounds(names(4), 2) for pair in turn]
    node = judged(*[SOUND] * 4, pairs={pair: slow if "node-2" in pair else fast for pair in turns})
    assert {n: state for n, (state, _) in node.items()} == {"node-2": "BAD"}
    pair = judged(*[SOUND] * 4, pairs={pair: slow if pair == turns[0] else fast for pair in turns})
    assert {n: state for n, (state, _) in pair.items()} == dict.fromkeys(turns[0], "SUSPICIOUS")
    wrong = judged(SOUND, SOUND, pairs={("node-0", "node-1"): PairFigures(0.002, False)})
    assert "its sums are wrong" in wrong["node-0"][1]
    assert "timed out" in judged(SOUND, SOUND, pairs={("node-0", "node-1"): "timed out"})["node-1"][1]


# Schedule.


@few
@given(st.integers(1, 33))
def test_everybody_meets_everybody_once_and_nobody_is_in_two_pairs_of_a_round(count):
    turns = rounds(range(count))
    assert len(turns) == (count if count % 2 and count > 1 else count - 1)
    met = [frozenset(pair) for pairs in turns for pair in pairs]
    assert len(met) == len(set(met)) == count * (count - 1) // 2
    for pairs in turns:
        assert len({node for pair in pairs for node in pair}) == 2 * len(pairs)
    assert rounds(range(count), 2) == turns[:2]


@few
@given(st.integers(2, 20), st.integers(1, 20))
def test_pairs_that_share_a_host_take_turns(count, hosts):
    for pairs in rounds(range(count)):
        turns = apart(pairs, lambda node: node % hosts)
        assert sorted(pair for turn in turns for pair in turn) == sorted(pairs)
        for turn in turns:
            used = [host for pair in turn for host in {node % hosts for node in pair}]
            assert len(used) == len(set(used))

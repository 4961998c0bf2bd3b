"""Live models in every layout: what is described is what is there, and each layout can be read from each other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from integration.worker_node import Forker
from logical_worlds import Memory, read

from ftrain.logical.axes import Span
from ftrain.logical.coverage import check, findings
from ftrain.logical.growth import with_optimizer_state
from ftrain.logical.placements import Scope
from ftrain.logical.reads import Planner, World
from ftrain.logical.state import Extent, RankState, kept

RANKS = Path(__file__).with_name("logical_ranks.py")
WORLD = 4
LAYOUTS = ("ddp", "fsdp", "hsdp", "tensor_parallel", "fsdp_tp", "stages", "by_hand")
NO_MASTERS = ("stages", "by_hand")
Held = list[tuple[RankState, list[bytes]]]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Held]:
    """What four ranks described in each layout, and the bytes that they held."""
    folder, forker = tmp_path_factory.mktemp("ranks"), Forker()
    environments = [{"RANK": str(rank), "WORLD_SIZE": str(WORLD)} for rank in range(WORLD)]
    try:
        codes = forker.run(RANKS, [str(folder)], environments, folder / "output")
    finally:
        forker.close()
    assert codes == [0] * WORLD, [(folder / f"output.{rank}").read_text() for rank in range(WORLD)]
    decoder = msgspec.msgpack.Decoder(tuple[RankState, list[bytes]])
    return {
        name: [decoder.decode((folder / f"{name}.{rank}").read_bytes()) for rank in range(WORLD)] for name in LAYOUTS
    }


def snapshot(held: Held, lost: frozenset[int] = frozenset()) -> tuple[World, list[Memory]]:
    """Each rank on a node of its own, with its tensors one after another."""
    states = []
    for state, values in held:
        ends = np.cumsum([len(value) for value in values]).tolist()
        extents = {
            tensor.name: (Extent(0, len(value), end - len(value)),)
            for tensor, value, end in zip(state.tensors, values, ends, strict=True)
            if value
        }
        states.append(kept(state, extents))
    buffers = [np.frombuffer(b"".join(values), np.uint8) for _, values in held]
    return World(tuple(states), dict(enumerate(range(WORLD))), lost), buffers


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_ranks_together_hold_each_element_as_often_as_they_say(layouts: Mapping[str, Held], name: str) -> None:
    check([state for state, _ in layouts[name]], are_kept=False)
    world, _ = snapshot(layouts[name])
    check(world.states, are_kept=True)
    missed = {finding.name for finding in findings([*world.states[:1], *world.states[2:]], are_kept=True)}
    assert "model.qkv.weight" in missed


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_what_one_layout_reads_from_another_is_what_it_held_itself(
    layouts: Mapping[str, Held], source: str, target: str
) -> None:
    world, buffers = snapshot(layouts[source], lost=frozenset({1}))
    planner = Planner(world)
    for rank, (state, values) in enumerate(layouts[target]):
        if source in NO_MASTERS:
            known = [not tensor.name.startswith("masters.") for tensor in state.tensors]
            state = RankState(rank, tuple(compress(state.tensors, known)), state.aliases)
            values = list(compress(values, known))
        memory = read(planner, buffers, state, node=rank)
        for tensor, value, [found, *others] in zip(state.tensors, values, memory, strict=True):
            assert all(other == found for other in others)  # each rank's own there, one tensor here
            if tensor.name == "model.norm.running_mean" and source == "stages":
                expected = np.full(3, (102, 103)[rank % 2], np.float32).tobytes()  # only ranks 2 and 3 have one
                assert found == expected
                continue
            size = tensor.elements * tensor.item_bytes  # the padding of a vocabulary is at its end
            assert found[:size] == value[:size], (tensor.name, rank)


def test_what_is_described(layouts: Mapping[str, Held]) -> None:
    """The cases that are easily got wrong, in numbers."""
    by_name = {name: [state.by_name for state, _ in held] for name, held in layouts.items()}
    embedding = "model.embedding.weight"
    assert all("module" not in name for states in by_name.values() for state in states for name in state)
    assert all(state.aliases["model.head.weight"] == embedding for state, _ in layouts["fsdp"])
    assert layouts["fsdp"][0][0].aliases["optimizer.model.head.weight.exp_avg"] == f"optimizer.{embedding}.exp_avg"
    # 3 rows on 4 ranks: the last one has none, but it counts the optimizer's steps.
    assert [state["model.down.weight"].elements for state in by_name["fsdp"]] == [8, 8, 8, 0]
    assert {state["optimizer.model.down.weight.step"].copies for state in by_name["fsdp"]} == {4}
    assert [state["model.norm.running_mean"].scope for state in by_name["fsdp"]] == [Scope.OWN] * 4
    # Rows 0 to 3 and 4 to 6 by tp, each halved by dp.
    assert [state[embedding].axes[0].spans[0][:3:2] for state in by_name["fsdp_tp"]] == [(0, 2), (4, 2), (2, 2), (6, 1)]
    assert by_name["hsdp"][1]["model.qkv.weight"].axes[1].spans == (Span(3, 0, 3),)
    assert by_name["by_hand"][3]["model.qkv.bias"].axes[0].spans == (Span(6, 0, 6), Span(14, 6, 2), Span(18, 8, 2))
    assert by_name["by_hand"][3][embedding].shape == (7, 6)
    assert [name for name in LAYOUTS if "masters.params.5" not in by_name[name][0]] == list(NO_MASTERS)
    assert set(by_name["stages"][0]).isdisjoint({"model.norm.weight", "model.head.weight"})


def test_a_new_optimizers_state_is_read_too(layouts: Mapping[str, Held]) -> None:
    """Given targets that have no optimizer state yet, then they read what the others' parameters go with."""
    world, buffers = snapshot(layouts["fsdp"])
    for rank, (state, values) in enumerate(layouts["fsdp_tp"]):
        new = RankState(rank, tuple(tensor for tensor in state.tensors if not tensor.like), state.aliases)
        grown = with_optimizer_state(new, world)
        assert set(grown.by_name) == set(state.by_name)
        memory = read(Planner(world), buffers, grown)
        held = dict(zip((tensor.name for tensor in state.tensors), values, strict=True))
        for tensor, [found] in zip(grown.tensors, memory, strict=True):
            if tensor.like:
                assert found == held[tensor.name], tensor.name

"""From each layout and world to each other, bit by bit: real process groups, real captures, real arenas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration.worker_node import Forker

from ftrain.durable.attempt import Job
from ftrain.durable.source import FoldersSource
from ftrain.durable.writer import run as run_writer
from ftrain_snapshot.words import SnapshotId

RANKS = Path(__file__).with_name("reshard_ranks.py")
WORLDS = (1, 2, 3, 4)
SNAPSHOT = SnapshotId(5, 1, 0)


def run(forker: Forker, folder: Path, action: str, world: int) -> None:
    environments = [{"RANK": str(rank), "WORLD_SIZE": str(world)} for rank in range(world)]
    output = folder / f"{action}{world}"
    codes = forker.run(RANKS, [action, str(folder)], environments, output)
    assert codes == [0] * world, "\n".join((folder / f"{output}.{rank}").read_text()[-3000:] for rank in range(world))


@pytest.fixture(scope="module")
def captured(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts of all worlds, captured."""
    folder = tmp_path_factory.mktemp("worlds")
    for world in WORLDS:
        run(forker, folder, "capture", world)
    for layout in list(folder.glob("*-*")):
        store(layout, folder / "stored" / layout.name)
    return folder


def store(captured: Path, url: Path) -> None:
    """Write a checkpoint of it, each node its part."""
    nodes = {int(path.name.removeprefix("node")): path for path in captured.iterdir()}
    places = dict(url=str(url), snapshot=SNAPSHOT, positions=len(nodes), lanes=1, timeout_seconds=200)
    with ThreadPoolExecutor(len(nodes)) as pool:
        codes = pool.map(
            lambda position: run_writer(Job(position=position, **places), lambda: FoldersSource(nodes, SNAPSHOT)), nodes
        )
    assert set(codes) == {0}


@pytest.mark.parametrize("world", WORLDS)
def test_each_layout_is_restored_from_each_world(forker: Forker, captured: Path, world: int) -> None:
    """Given captures of all layouts, then ranks of this world get every bit: with all nodes, with one lost, from what
    is on storage."""
    run(forker, captured, "restore", world)

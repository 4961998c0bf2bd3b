"""From each layout and world to each other, bit by bit: real process groups, real captures, real arenas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.worker_node import Forker

RANKS = Path(__file__).with_name("reshard_ranks.py")
WORLDS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    forker = Forker()
    yield forker
    forker.close()


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
    return folder


@pytest.mark.parametrize("world", WORLDS)
def test_each_layout_is_restored_from_each_world(forker: Forker, captured: Path, world: int) -> None:
    """Given captures of all layouts, with all nodes there or one lost, then ranks of this world get every bit."""
    run(forker, captured, "restore", world)

"""The durable tier when something goes wrong: what writers leave is a checkpoint or nothing, and readers find out."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import durable_job as job
import pytest
import torch.distributed.checkpoint as dcp
from durable_memory import Memory, Writers, started_writers
from small_disk import small_disk
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

from ftrain.durable.reader import Checkpoint, read_state
from ftrain.errors import StateMismatch
from ftrain_snapshot.storage import Storage, StorageError, part_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


writers = pytest.fixture(scope="module")(started_writers)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def test_wherever_a_writer_is_killed_only_whole_checkpoints_are_listed(tmp_path: Path, writers: Writers) -> None:
    memory = Memory(tmp_path, positions=1)
    memory.write(writers, memory.capture(1))
    snapshot = memory.capture(2)
    ((_, points, _),) = writers.run(memory.writer(0, snapshot))
    assert points > 40
    Storage(memory.url).remove(2, [".metadata"])
    for kill_at in sorted({*range(1, points, 9), *range(points - 12, points + 1)}):
        before = memory.steps()
        ((code, _, _),) = writers.run(memory.writer(0, snapshot, kill_at=kill_at))
        assert code == -9
        assert memory.steps() in (before, [2, 1])
        for step in memory.steps():
            read_state(Checkpoint(Storage(memory.url).path(step)), 0, 1)
        if memory.steps() == [2, 1] and kill_at < points - 12:
            Storage(memory.url).remove(2, [".metadata"])
    memory.write(writers, snapshot)
    assert memory.steps() == [2, 1]
    memory.check_resume(2)


@pytest.mark.parametrize("position", [0, 1])
def test_a_later_attempt_succeeds_where_a_writer_was_killed(memory: Memory, writers: Writers, position: int) -> None:
    snapshot = memory.capture(5)
    kill_at = [0, 0]
    kill_at[position] = 20
    ends = writers.run(*(memory.writer(p, snapshot, "--timeout-seconds", "0.5", kill_at=kill_at[p]) for p in range(2)))
    assert ends[position][0] == -9
    assert ends[1 - position][0] == (5 if position else 0)
    assert memory.steps() == []
    memory.write(writers, memory.capture(5, generation=2))
    assert memory.steps() == [5]
    memory.check_resume(5)


def test_a_claim_that_was_cut_short_blocks_nobody(memory: Memory, writers: Writers) -> None:
    folder = Path(memory.url) / "step-00000005"
    folder.mkdir(parents=True)
    (folder / part_name(0, 0)).write_bytes(b'{"writer":"te')
    memory.write(writers, memory.capture(5))
    memory.check_resume(5)
    assert (folder / "__0_1.distcp").exists()


def test_it_ends_with_3_when_the_slot_was_taken(memory: Memory, writers: Writers) -> None:
    snapshot = memory.capture(5)
    memory.capture(8)  # the same slot
    ((code, _, said),) = writers.run(memory.writer(1, snapshot))
    assert code == 3
    assert said.startswith("ftrain durable: ")
    assert said.count("\n") == 1
    assert "cannot be read any more" in said
    assert memory.steps() == []


def test_it_ends_with_3_when_bytes_are_damaged_and_says_so_to_position_0(memory: Memory, writers: Writers) -> None:
    snapshot = memory.capture(5)
    job.damage(memory.root / "node1", 0, snapshot.slot, 100)
    ends = writers.run(*(memory.writer(position, snapshot) for position in range(2)))
    assert ends[1][0] == 3
    assert "is damaged" in ends[1][2]
    assert ends[0][0] in (3, 5)  # it may have needed those bytes itself
    assert memory.steps() == []
    assert not [name for name in os.listdir(Path(memory.url) / "step-00000005") if name.endswith(".distcp")]


def test_it_ends_with_4_when_the_storage_refuses(memory: Memory, writers: Writers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    memory.url = str(tmp_path / "file" / "checkpoints")
    ((code, _, said),) = writers.run(memory.writer(0, memory.capture(5)))
    assert (code, said.count("\n")) == (4, 1)
    assert said.startswith(f"ftrain durable: --durable {memory.url}: ")


def test_a_full_disk_is_left_as_it_was(memory: Memory, writers: Writers) -> None:
    """What a failed write had used is there for the next one."""
    with small_disk(Path(memory.url), "4m") as disk:
        others = disk / "of somebody else"
        with others.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (16 << 10))
        for step in (5, 6):
            snapshot = memory.capture(step)
            ends = writers.run(*(memory.writer(p, snapshot) for p in range(2)))
            assert 4 in {code for code, _, _ in ends} <= {4, 5}, ends  # 5: what the other one took back was enough
            assert any("No space left" in said for _, _, said in ends)
            left = os.listdir(disk / f"step-{step:08}")
            assert not [name for name in left if not name.startswith("ftrain.part")]
        others.unlink()
        memory.write(writers, memory.capture(7))
        assert memory.steps() == [7]


def test_it_ends_with_5_when_others_are_missing(memory: Memory, writers: Writers) -> None:
    ((code, _, said),) = writers.run(memory.writer(0, memory.capture(5), "--timeout-seconds", "0.3"))
    assert (code, said) == (5, "ftrain durable: no part of positions 1 in time\n")
    assert memory.steps() == []


def test_position_0_gives_up_at_once_when_another_position_has(memory: Memory, writers: Writers) -> None:
    """Nobody waits for the timeout: the reason is in the part record."""
    snapshot = memory.capture(5)
    job.damage(memory.root / "node1", 0, snapshot.slot, 100)
    writers.run(memory.writer(1, snapshot))
    ((code, _, said),) = writers.run(memory.writer(0, snapshot))
    assert code in (3, 5)
    assert "is damaged" in said


def test_bad_arguments_end_with_2(memory: Memory, writers: Writers) -> None:
    ((code, _, said),) = writers.run(memory.writer(0, memory.capture(5), "--keep", "0"))
    assert (code, said) == (2, "ftrain durable: keep and timeout_seconds must be positive\n")


@pytest.fixture
def written(memory: Memory, writers: Writers) -> Path:
    memory.write(writers, memory.capture(5))
    return Path(memory.url) / "step-00000005"


def test_another_world_size_is_refused(written: Path) -> None:
    with pytest.raises(StateMismatch, match="written by 2 ranks, this job has 3"):
        read_state(Checkpoint(str(written)), 0, 3)


def test_a_flipped_bit_is_found(written: Path) -> None:
    for file in written.glob("*.distcp"):
        content = bytearray(file.read_bytes())
        for offset in range(0, len(content), 97):
            content[offset] ^= 4
        file.write_bytes(content)
    with pytest.raises(StateMismatch, match=r"damaged|cannot be read"):
        read_state(Checkpoint(str(written)), 0, 2)


def test_a_file_that_ends_early_is_found(written: Path) -> None:
    os.truncate(written / "__1_0.distcp", 10_000)
    with pytest.raises(StateMismatch, match="ends early"):
        read_state(Checkpoint(str(written)), 1, 2)


def test_a_missing_file_is_one_line(written: Path) -> None:
    (written / "__1_0.distcp").unlink()
    with pytest.raises(StorageError, match=r"__1_0\.distcp"):
        read_state(Checkpoint(str(written)), 1, 2)


def test_a_plain_dcp_checkpoint_is_refused(memory: Memory, tmp_path: Path) -> None:
    for writer, path, said in (
        (dcp.FileSystemWriter, tmp_path / "step-00000001", "not as ftrain writes it"),
        (FsspecWriter, str(tmp_path / "step-00000002"), "only checkpoints that ftrain wrote"),
    ):
        dcp.save({"model": memory.ranks[0]["model"].state_dict()}, storage_writer=writer(path))
        with pytest.raises(StateMismatch, match=said):
            read_state(Checkpoint(str(path)), 0, 2)


def test_metadata_is_never_executed(written: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    (written / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StateMismatch, match="mkdir does not belong there"):
        read_state(Checkpoint(str(written)), 0, 2)
    assert not (tmp_path / "executed").exists()


def test_objects_of_ours_are_loaded_without_their_pickles(memory: Memory, written: Path) -> None:
    """Plain objects are pickles, as DCP wants them; a resume takes its values from the manifests instead."""
    stored = dcp.FileSystemReader(written).read_metadata().storage_data
    (info,) = [info for index, info in stored.items() if index.fqn == "sampler.position"]
    content = bytearray((written / info.relative_path).read_bytes())
    content[info.offset : info.offset + info.length] = bytes(info.length)
    (written / info.relative_path).write_bytes(content)
    memory.check_resume(5)

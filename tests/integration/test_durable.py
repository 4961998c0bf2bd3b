"""The durable tier with real files and real writer processes: what they leave is a DCP checkpoint, or nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import durable_job as job
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from jobs import PROGRAMS
from snapshot_nodes import Cluster, cluster_root
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from ftrain.durable.attempt import Job
from ftrain.durable.reader import read_state
from ftrain.durable.source import FoldersSource
from ftrain.durable.writer import run
from ftrain.errors import StateMismatch
from ftrain.gradients import load_gradients
from ftrain.rng import set_rng_state
from ftrain.state import load_state, state_of, unique_parameters
from ftrain_snapshot.messages import SnapshotId
from ftrain_snapshot.storage import Claim, Storage, StorageError, newest, part_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

READ_WITHOUT_FTRAIN = PROGRAMS / "read_with_dcp.py"


class Writers:
    """The process that forks writers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, job.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *writers: tuple[Path | None, list[str], int]) -> list[tuple[int, int, str]]:
        """(exit code, times it could have been killed, stderr) of each."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([[root and str(root), args, at] for root, args, at in writers]) + "\n")
        self.process.stdin.flush()
        return [tuple(end) for end in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    found = Writers()
    yield found
    found.close()


class Memory:
    """A job of some ranks, captured into node folders; nobody trains."""

    def __init__(self, root: Path, positions: int = 2, lanes: int = 1) -> None:
        self.root, self.positions, self.lanes = root, positions, lanes
        self.url = str(root / "checkpoints")
        self.world_size = positions * lanes
        self.ranks = [job.build(rank, self.world_size) for rank in range(self.world_size)]
        self.trees: list[dict[str, Any]] = []

    def capture(self, step: int, generation: int = 1) -> SnapshotId:
        snapshot = SnapshotId(step, generation, step % 3)
        self.trees = [job.tree_of(objects, step) for objects in self.ranks]
        for rank, objects in enumerate(self.ranks):
            position, lane = divmod(rank, self.lanes)
            job.capture(objects, rank, self.world_size, snapshot, self.root / f"node{position}", lane)
        return snapshot

    def writer(self, position: int, snapshot: SnapshotId, *more: str, kill_at: int = 0) -> tuple[Path, list[str], int]:
        return self.root, [*self.arguments(position, snapshot), *more], kill_at

    def arguments(self, position: int, snapshot: SnapshotId) -> list[str]:
        given = {
            "node-dir": self.root / f"node{position}", "url": self.url, "positions": self.positions,
            "position": position, "lanes": self.lanes, "job": "test", "timeout-seconds": 30,
            "snapshot": f"{snapshot.version}:{snapshot.generation}:{snapshot.slot}",
        }  # fmt: skip
        return [word for key, value in given.items() for word in (f"--{key}", str(value))]

    def write(self, writers: Writers, snapshot: SnapshotId, *more: str) -> None:
        ends = writers.run(*(self.writer(position, snapshot, *more) for position in range(self.positions)))
        assert [(code, err) for code, _, err in ends] == [(0, "")] * self.positions

    def steps(self) -> list[int]:
        return [found.step for found in Storage(self.url).checkpoints()]

    def check_resume(self, step: int) -> None:
        """Every rank reads back, bit by bit, what it captured last."""
        for rank, tree in enumerate(self.trees):
            same(read_state(Storage(self.url).path(step), rank, self.world_size), tree, f"rank {rank}")


def same(got: Any, want: Any, where: str) -> None:
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), where
        assert (got.dtype, got.shape) == (want.dtype, want.shape), where
        flat = [each.detach().contiguous().view(-1).view(torch.uint8) for each in (got, want)]
        assert torch.equal(*flat), where
        if want.is_contiguous(memory_format=torch.channels_last) if want.dim() == 4 else want.is_contiguous():
            assert got.stride() == want.stride(), where
        return
    assert type(got) is type(want), where
    if isinstance(want, dict):
        assert list(got) == list(want), where
        for key in want:
            same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for index, value in enumerate(want):
            same(got[index], value, f"{where}[{index}]")
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype, where
        assert (got == want).all(), where
    else:
        assert got == want, where


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def test_plain_dcp_loads_it_without_ftrain(memory: Memory, writers: Writers, tmp_path: Path) -> None:
    memory.write(writers, memory.capture(7))
    expected = tmp_path / "expected.pt"
    torch.save({name: tracked.state_dict() for name, tracked in memory.ranks[0].items()}, expected)
    done = subprocess.run(
        [sys.executable, READ_WITHOUT_FTRAIN, Storage(memory.url).path(7), expected, tmp_path / "plain.pt"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    assert done.stdout == "same\n", done.stderr


def test_it_is_described_as_dcp_save_would_describe_it(memory: Memory, writers: Writers, tmp_path: Path) -> None:
    memory.write(writers, memory.capture(7))
    dcp.save(
        {name: tracked.state_dict() for name, tracked in memory.ranks[0].items()}, checkpoint_id=tmp_path / "reference"
    )
    reference = dcp.FileSystemReader(tmp_path / "reference").read_metadata()
    ours = dcp.FileSystemReader(Storage(memory.url).path(7)).read_metadata()
    assert reference.state_dict_metadata.items() <= ours.state_dict_metadata.items()
    assert reference.planner_data.items() <= ours.planner_data.items()
    assert reference.storage_data.keys() <= ours.storage_data.keys()
    assert ours.version == reference.version
    more = ours.state_dict_metadata.keys() - reference.state_dict_metadata.keys()
    assert {key for key in more if not key.startswith("ftrain.")} == {"own.only", "own.mine"}  # rank 1's alone


def test_what_all_ranks_share_is_written_once(memory: Memory, writers: Writers) -> None:
    memory.write(writers, memory.capture(7))
    stored = dcp.FileSystemReader(Storage(memory.url).path(7)).read_metadata().storage_data
    places = {index.fqn: (info.relative_path, info.offset) for index, info in stored.items()}
    assert not [key for key in places if key.startswith("ftrain.rank1") and "weight" in key]
    assert places["model.tied.weight"] == places["model.first.weight"]
    assert {file for file, _ in places.values()} == {"__0_0.distcp", "__1_0.distcp"}
    parameters = [key for key in places if key.startswith("optimizer.state")]
    assert {places[key][0] for key in parameters} == {"__0_0.distcp", "__1_0.distcp"}  # each node a part


@pytest.mark.parametrize(("positions", "lanes"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_each_rank_resumes_from_what_it_captured(tmp_path: Path, writers: Writers, positions: int, lanes: int) -> None:
    memory = Memory(tmp_path, positions, lanes)
    memory.write(writers, memory.capture(12))
    memory.check_resume(12)


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, writers: Writers) -> None:
    memory = Memory(tmp_path, positions=1)
    (objects,) = memory.ranks
    memory.write(writers, memory.capture(12))
    state = read_state(Storage(memory.url).path(12), 0, 1)
    (fresh,) = Memory(tmp_path / "other", positions=1).ranks
    for name, tracked in fresh.items():
        if name != "own":
            load_state(name, tracked, state["objects"][name])
    load_gradients(unique_parameters(fresh), state["gradients"])
    for each in (objects, fresh):
        set_rng_state(state["rng"])
        job.train(each, 3)
    for name in fresh:
        same(state_of(fresh[name]), state_of(objects[name]), name)


def test_any_storage_that_fsspec_knows_will_do(memory: Memory) -> None:
    """No disk: an object store's semantics, with writers in threads, since the memory is this process's."""
    snapshot = memory.capture(5)
    memory.url = f"memory://{memory.root.name}/checkpoints"
    folders = {position: memory.root / f"node{position}" for position in range(2)}
    jobs = [
        Job(url=memory.url, snapshot=snapshot, position=position, positions=2, lanes=1, timeout_seconds=20)
        for position in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda each: run(each, lambda: FoldersSource(folders, snapshot)), jobs)) == [0, 0]
    memory.check_resume(5)
    found = newest(memory.url)
    assert found is not None
    state = {"model": {name: torch.zeros_like(t) for name, t in memory.ranks[0]["model"].state_dict().items()}}
    dcp.load(state, storage_reader=FsspecReader(found.path))
    for name, tensor in memory.ranks[0]["model"].state_dict().items():
        same(state["model"][name], tensor, name)


@pytest.mark.parametrize("broken", ["retire", "remove"])
def test_a_checkpoint_that_exists_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], broken: str
) -> None:
    """Cleaning up after it fails: that is said, and the checkpoint stays whole."""
    memory = Memory(tmp_path, positions=1)
    snapshot = memory.capture(5)

    def fail(*args: object) -> None:
        raise StorageError("no permission")

    monkeypatch.setattr(Storage, broken, fail)
    given = Job(url=memory.url, snapshot=snapshot, position=0, positions=1, lanes=1, timeout_seconds=20)
    assert run(given, lambda: FoldersSource({0: memory.root / "node0"}, snapshot)) == 0
    assert "the checkpoint is written, but cleaning up failed: no permission" in capfd.readouterr().err
    memory.check_resume(5)


def test_tied_tensors_come_back_as_one(memory: Memory, writers: Writers) -> None:
    memory.write(writers, memory.capture(7))
    state = read_state(Storage(memory.url).path(7), 1, 2)["objects"]["model"]["state"]
    assert state["tied.weight"] is state["first.weight"]


def test_the_command_reads_its_node_without_a_daemon(tmp_path: Path) -> None:
    memory = Memory(tmp_path, positions=1)
    snapshot = memory.capture(3)
    command = [sys.executable, "-m", "ftrain.durable.writer", *memory.arguments(0, snapshot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    memory.check_resume(3)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    for root in cluster_root():
        found = Cluster(root, 3, parity=1)
        yield found
        found.stop()


def test_the_daemons_make_up_for_what_is_damaged(tmp_path: Path, writers: Writers, cluster: Cluster) -> None:
    """The real thing: three daemons, a protected snapshot, writers that only know their own node."""
    memory = Memory(tmp_path, positions=3)
    cluster.configure()
    cluster.reserve(4 << 20)
    snapshot = cluster.take(5)
    memory.trees = [job.tree_of(objects, 5) for objects in memory.ranks]
    for position, node in enumerate(cluster.nodes):
        job.capture(memory.ranks[position], position, 3, snapshot, node.dir)
        node.agent.sealed(0, snapshot)
    cluster.wait_protected(5)
    job.damage(cluster.nodes[1].dir, 0, snapshot.slot, 100)
    arguments = [[*memory.arguments(p, snapshot), "--node-dir", str(cluster.nodes[p].dir)] for p in range(3)]
    ends = writers.run(*((None, each, 0) for each in arguments))
    assert [(code, said) for code, _, said in ends] == [(0, "")] * 3
    memory.check_resume(5)


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
            read_state(Storage(memory.url).path(step), 0, 1)
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


def test_a_step_that_is_written_again_replaces_the_first(memory: Memory, writers: Writers) -> None:
    memory.write(writers, memory.capture(5))
    for objects in memory.ranks:
        with torch.no_grad():
            objects["model"].first.weight.add_(1)
    memory.write(writers, memory.capture(5, generation=2))
    memory.check_resume(5)


def test_retention_keeps_the_newest_and_what_is_not_ours(memory: Memory, writers: Writers) -> None:
    foreign = Path(memory.url) / "step-00000001"
    foreign.mkdir(parents=True)
    (foreign / ".metadata").write_bytes(b"somebody's")
    for step in (2, 3, 4):
        memory.write(writers, memory.capture(step), "--keep", "2")
    assert sorted(os.listdir(memory.url)) == ["step-00000001", "step-00000003", "step-00000004"]
    assert memory.steps() == [4, 3]
    assert newest(memory.url) == (4, str(Path(memory.url) / "step-00000004"), 2)
    memory.check_resume(4)


def test_half_written_folders_go_once_nobody_can_be_writing_them(memory: Memory, writers: Writers) -> None:
    disk = Storage(memory.url)
    disk.claim(1, Claim("dead", 0, 0.0, 1.0))
    disk.claim(2, Claim("alive", 0, 0.0, 9e9))
    disk.claim(9, Claim("dead, but newer", 0, 0.0, 1.0))
    memory.write(writers, memory.capture(5))
    assert sorted(os.listdir(memory.url)) == ["step-00000002", "step-00000005", "step-00000009"]
    assert memory.steps() == [5]


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
        read_state(str(written), 0, 3)


def test_a_flipped_bit_is_found(written: Path) -> None:
    for file in written.glob("*.distcp"):
        content = bytearray(file.read_bytes())
        for offset in range(0, len(content), 97):
            content[offset] ^= 4
        file.write_bytes(content)
    with pytest.raises(StateMismatch, match=r"damaged|cannot be read"):
        read_state(str(written), 0, 2)


def test_a_file_that_ends_early_is_found(written: Path) -> None:
    os.truncate(written / "__1_0.distcp", 10_000)
    with pytest.raises(StateMismatch, match="ends early"):
        read_state(str(written), 1, 2)


def test_a_missing_file_is_one_line(written: Path) -> None:
    (written / "__1_0.distcp").unlink()
    with pytest.raises(StorageError, match=r"__1_0\.distcp"):
        read_state(str(written), 1, 2)


def test_a_plain_dcp_checkpoint_is_refused(memory: Memory, tmp_path: Path) -> None:
    for writer, path, said in (
        (dcp.FileSystemWriter, tmp_path / "step-00000001", "not as ftrain writes it"),
        (FsspecWriter, str(tmp_path / "step-00000002"), "only checkpoints that ftrain wrote"),
    ):
        dcp.save({"model": memory.ranks[0]["model"].state_dict()}, storage_writer=writer(path))
        with pytest.raises(StateMismatch, match=said):
            read_state(str(path), 0, 2)


def test_metadata_is_never_executed(written: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    (written / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StateMismatch, match="mkdir does not belong there"):
        read_state(str(written), 0, 2)
    assert not (tmp_path / "executed").exists()


def test_objects_of_ours_are_loaded_without_their_pickles(memory: Memory, written: Path) -> None:
    """Plain objects are pickles, as DCP wants them; a resume takes its values from the manifests instead."""
    stored = dcp.FileSystemReader(written).read_metadata().storage_data
    (info,) = [info for index, info in stored.items() if index.fqn == "sampler.position"]
    content = bytearray((written / info.relative_path).read_bytes())
    content[info.offset : info.offset + info.length] = bytes(info.length)
    (written / info.relative_path).write_bytes(content)
    memory.check_resume(5)


def test_a_file_url_is_as_good_as_a_path(memory: Memory, writers: Writers) -> None:
    memory.url = f"file://{memory.url}"
    memory.write(writers, memory.capture(5))
    found = newest(memory.url)
    assert found is not None
    assert found.step == 5
    memory.check_resume(5)
    assert dcp.FileSystemReader(found.path).read_metadata().state_dict_metadata


def test_a_claim_that_was_cut_short_blocks_nobody(memory: Memory, writers: Writers) -> None:
    folder = Path(memory.url) / "step-00000005"
    folder.mkdir(parents=True)
    (folder / part_name(0, 0)).write_bytes(b'{"writer":"te')
    memory.write(writers, memory.capture(5))
    memory.check_resume(5)
    assert (folder / "__0_1.distcp").exists()

"""The durable tier with real files and real writer processes: what they leave is a DCP checkpoint, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import durable_job as job
import pytest
import torch
import torch.distributed.checkpoint as dcp
from durable_memory import Memory, Writers, assert_bits, started_writers
from jobs import PROGRAMS
from snapshot_nodes import Cluster, cluster_root
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

from ftrain.durable.attempt import Job
from ftrain.durable.reader import Checkpoint, read_state
from ftrain.durable.source import FoldersSource
from ftrain.durable.writer import run
from ftrain.gradients import load_gradients
from ftrain.rng import set_rng_state
from ftrain.state import load_state, state_of, unique_parameters
from ftrain_snapshot.storage import Claim, Storage, StorageError, newest

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

READ_WITHOUT_FTRAIN = PROGRAMS / "read_with_dcp.py"


writers = pytest.fixture(scope="module")(started_writers)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def test_plain_dcp_loads_it_without_ftrain(memory: Memory, writers: Writers, tmp_path: Path) -> None:
    memory.write(writers, memory.capture(7))
    expected = tmp_path / "expected.pt"
    torch.save({name: tracked.state_dict() for name, tracked in memory.ranks[0].items()}, expected)
    done = subprocess.run(
        [sys.executable, READ_WITHOUT_FTRAIN, Storage(memory.url).path(7), expected, tmp_path / "plain.pt"],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""},
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
    state = read_state(Checkpoint(Storage(memory.url).path(12)), 0, 1).tree
    (fresh,) = Memory(tmp_path / "other", positions=1).ranks
    for name, tracked in fresh.items():
        if name != "own":
            load_state(name, tracked, state["objects"][name])
    load_gradients(unique_parameters(fresh), state["gradients"])
    for each in (objects, fresh):
        set_rng_state(state["rng"])
        job.train(each, 3)
    for name in fresh:
        assert_bits(state_of(fresh[name]), state_of(objects[name]), name)


def test_any_storage_that_fsspec_knows_will_do(memory: Memory) -> None:
    """No disk: an object store's semantics, with writers in threads, since the memory is this process's."""
    snapshot = memory.capture(5)
    memory.url = f"memory://{memory.root.name}/checkpoints"
    folders = {position: memory.root / f"node{position}" for position in range(2)}
    jobs = [
        Job(url=memory.url, snapshot=snapshot, position=position, positions=2, lanes=1, timeout_seconds=200)
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
        assert_bits(state["model"][name], tensor, name)


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
    given = Job(url=memory.url, snapshot=snapshot, position=0, positions=1, lanes=1, timeout_seconds=200)
    assert run(given, lambda: FoldersSource({0: memory.root / "node0"}, snapshot)) == 0
    assert "the checkpoint is written, but cleaning up failed: no permission" in capfd.readouterr().err
    memory.check_resume(5)


def test_tied_tensors_come_back_as_one(memory: Memory, writers: Writers) -> None:
    memory.write(writers, memory.capture(7))
    state = read_state(Checkpoint(Storage(memory.url).path(7)), 1, 2).tree["objects"]["model"]["state"]
    assert state["tied.weight"] is state["first.weight"]


def test_a_resume_reads_nothing_twice(memory: Memory, writers: Writers, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.write(writers, memory.capture(7))
    places: list[tuple[object, ...]] = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, *place: places.append(place) or read(self, *place))
    checkpoint = Checkpoint(Storage(memory.url).path(7))
    checkpoint.record(1)  # as `reshard.crossing.other_world` does, to see whose it is
    assert_bits(read_state(checkpoint, 1, 2).tree, memory.trees[1], "rank 1")
    assert len(places) == len(set(places))


def test_the_command_reads_its_node_without_a_daemon(tmp_path: Path) -> None:
    memory = Memory(tmp_path, positions=1)
    snapshot = memory.capture(3)
    command = [sys.executable, "-m", "ftrain.durable.writer", *memory.arguments(0, snapshot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
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


def test_a_file_url_is_as_good_as_a_path(memory: Memory, writers: Writers) -> None:
    memory.url = f"file://{memory.url}"
    memory.write(writers, memory.capture(5))
    found = newest(memory.url)
    assert found is not None
    assert found.step == 5
    memory.check_resume(5)
    assert dcp.FileSystemReader(found.path).read_metadata().state_dict_metadata

"""The environment of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ftrain_launcher.node.node_workers import restore_trouble
from ftrain_launcher.processes.environment import worker_environment
from ftrain_launcher.processes.zygote_start import zygote_environment
from ftrain_launcher.to_agent import Form
from ftrain_launcher.work import Durable, Work
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.storage import DurableId, StorageError
from ftrain_snapshot.words import SnapshotId

WORK = Work(
    job="j", argv=("train.py",), folder="/", log_folder="/logs", nproc_per_node=2, snapshot_every=5, parity=1,
    max_restarts=7,
)  # fmt: skip
FORM = Form(
    generation=3, position=1, peers=(Peer(0, "node-0", "h", 1), Peer(1, "node-1", "h", 2)), store_host="127.0.0.1",
    store_port=29, restore=None, work=WORK,
)  # fmt: skip


def variables(form: Form = FORM, interface: str = "") -> dict[str, str]:
    """Of rank 3."""
    return worker_environment(form, 1, node="node-1", node_folder=Path("/dev/shm/ftrain-j/node-1"), interface=interface)


def working(**changes: Any) -> Form:
    """The same generation, of other work."""
    return replace(FORM, work=replace(WORK, **changes))


def test_a_worker_gets_torchruns_variables() -> None:
    got = variables()
    wanted = dict(
        RANK="3", LOCAL_RANK="1", WORLD_SIZE="4", LOCAL_WORLD_SIZE="2", GROUP_RANK="1", GROUP_WORLD_SIZE="2",
        ROLE_RANK="3", ROLE_WORLD_SIZE="4", ROLE_NAME="default", MASTER_ADDR="127.0.0.1", MASTER_PORT="29",
        TORCHELASTIC_RESTART_COUNT="2", TORCHELASTIC_MAX_RESTARTS="7", TORCHELASTIC_RUN_ID="j",
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    assert {name: got.get(name) for name in wanted} == wanted


def test_a_worker_gets_ftrains_variables() -> None:
    got = variables(replace(FORM, restore=SnapshotId(17, 2, 1)))
    assert {name: value for name, value in got.items() if name.startswith("FTRAIN_")} == dict(
        FTRAIN_JOB="j", FTRAIN_NODE="node-1", FTRAIN_NODE_DIR="/dev/shm/ftrain-j/node-1", FTRAIN_GENERATION="3",
        FTRAIN_RESTORE="17:2:1", FTRAIN_ORIGIN="", FTRAIN_DURABLE="", FTRAIN_SNAPSHOT_EVERY="5",
        FTRAIN_DEMOTE_AFTER_NAN="1",
        FTRAIN_CHECK_REPLICAS="100", FTRAIN_COLLECTIVE_TIMEOUT_SECONDS="", FTRAIN_RECORDER="1",
        FTRAIN_DETERMINISTIC_REDUCTION="0",
    )  # fmt: skip
    assert variables()["FTRAIN_RESTORE"] == ""
    assert variables(working(demote_after_nan=False))["FTRAIN_DEMOTE_AFTER_NAN"] == "0"


def test_the_middle_floor_reads_what_the_launcher_writes() -> None:
    from ftrain.environment import read_environment

    assert read_environment(variables(working(deterministic_reduction=True))).deterministic_reduction
    read = read_environment(variables(replace(FORM, restore=SnapshotId(17, 2, 1))))
    assert (read.rank, read.local_rank, read.world_size, read.local_world_size) == (3, 1, 4, 2)
    assert read.job is not None
    assert (read.job.generation, read.job.restore, read.job.snapshot_every) == (3, SnapshotId(17, 2, 1), 5)
    assert (read.job.durable, read.job.start, read.job.elastic) == (None, 17, False)
    for work in (working(elastic=True), working(durable=Durable(url="file:///s", every=5))):  # other ranks may go on
        resized = read_environment(variables(work)).job
        assert resized is not None
        assert resized.elastic
    found = DurableId(9, "s3://bucket/x/step-00000009")
    read = read_environment(variables(replace(FORM, durable_start=found)))
    assert read.job is not None
    assert (read.job.restore, read.job.durable, read.job.start) == (None, found, 9)
    peers = (Peer(0, "node-0", "h", 1), Peer(3, "node-3", "h", 2))
    origin = Origin(SnapshotId(41, 2, 0), 4, 1, ((0, 1, 2, 3),), "auto", peers, position=3)
    read = read_environment(variables(replace(FORM, origin=origin)))
    assert read.job is not None
    assert (read.job.restore, read.job.origin, read.job.start) == (None, origin, 41)


def test_a_worker_with_a_gpu_of_its_own_keeps_its_lane() -> None:
    from ftrain.environment import read_environment

    for visible, gpu in ((None, "1"), ("4, 6", "6")):
        user = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        got = variables(working(environment=user, virtual_local_rank=True))
        assert (got["LOCAL_RANK"], got["CUDA_VISIBLE_DEVICES"]) == ("0", gpu)
        read = read_environment(got)
        assert (read.local_rank, read.device_index, read.own_gpu) == (1, 0, True)
    plain = read_environment(variables())
    assert (plain.device_index, plain.own_gpu) == (1, False)


def test_emulated_nodes_talk_over_loopback_unless_the_user_says_otherwise() -> None:
    assert "GLOO_SOCKET_IFNAME" not in variables()
    assert variables(interface="lo")["GLOO_SOCKET_IFNAME"] == "lo"
    user = {"GLOO_SOCKET_IFNAME": "eth7", "RANK": "99"}
    got = variables(working(environment=user), interface="lo")
    assert (got["GLOO_SOCKET_IFNAME"], got["RANK"]) == ("eth7", "3")


def test_a_zygote_that_imports_has_one_blas_thread_and_the_users_openmp_threads() -> None:
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert zygote_environment({"PATH": "p"}) == {"PATH": "p", **own}
    assert zygote_environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
    assert zygote_environment({"OPENBLAS_NUM_THREADS": "4"})["OPENBLAS_NUM_THREADS"] == "1"
    assert zygote_environment({"OPENBLAS_NUM_THREADS": "4"}, preload=False)["OPENBLAS_NUM_THREADS"] == "4"


def test_malloc_takes_huge_pages_beside_the_users_settings_and_unless_the_user_says_otherwise() -> None:
    for given, expected in (
        ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ):
        assert zygote_environment({"GLIBC_TUNABLES": given})["GLIBC_TUNABLES"] == expected


def test_state_that_cannot_be_had_is_no_failure_of_the_program() -> None:
    from ftrain.errors import StateInconsistent, StateMismatch
    from ftrain.logical.errors import StateUncovered
    from ftrain.outcome import describe_failure
    from ftrain.reshard.certificate import NotCertified

    lost = (SnapshotIncomplete("too much is lost"), StorageError("no answer"))
    doubtful = (NotCertified("replicas differ"), StateUncovered("a hole"), StateInconsistent("it is damaged"))
    errors = (*lost, *doubtful, StateMismatch("the script tracks something else"), ValueError("StorageError"))
    kinds = ["restore_failed"] * 2 + ["not_certified"] * 3 + [None] * 2
    assert [restore_trouble(describe_failure(error, None).error) for error in errors] == kinds

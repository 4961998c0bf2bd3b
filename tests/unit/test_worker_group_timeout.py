"""Groups that a script makes have the job's timeout, or the one that the script gave its default group."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ftrain.comm.timeout import group_timeout, inherit_timeout
from ftrain.environment import read_environment
from ftrain.errors import EnvironmentInvalid
from ftrain_launcher.commands import checks
from ftrain_launcher.errors import UsageError
from ftrain_launcher.processes.environment import worker_environment
from ftrain_launcher.to_agent import Form
from ftrain_launcher.work import Work
from ftrain_snapshot.membership import Peer

TORCH = timedelta(minutes=30)
Begin = Callable[..., None]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Form the default group: under a job with this timeout, with this one in the script."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(distributed_c10d, "_get_default_timeout", distributed_c10d._get_default_timeout)

    def form(*, job_seconds: float | None = None, script_seconds: float | None = None) -> None:
        assert inherit_timeout(job_seconds), "this torch has no such function"
        given = {} if script_seconds is None else {"timeout": timedelta(seconds=script_seconds)}
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, **given)

    yield form
    dist.destroy_process_group()


def seconds(group: dist.ProcessGroup | None) -> float:
    assert group is not None
    timeout = group_timeout(group)
    assert timeout is not None
    return timeout.total_seconds()


def all_kinds() -> set[float]:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    groups = [
        dist.group.WORLD,
        dist.new_group([0]),
        dist.new_subgroups(1)[0],
        mesh.get_group("tp"),
        mesh["dp", "tp"]._flatten().get_group(),
        DeviceMesh("cpu", [[0]], mesh_dim_names=("x", "y")).get_group("y"),
    ]
    return {seconds(group) for group in groups}


def test_without_a_wish_all_have_torchs(begin: Begin):
    begin()
    assert all_kinds() == {TORCH.total_seconds()}


def test_the_jobs_timeout_is_everybodys(begin: Begin):
    begin(job_seconds=77)
    assert all_kinds() == {77}


def test_what_the_script_gives_its_default_group_goes_before_the_jobs(begin: Begin):
    begin(job_seconds=77, script_seconds=50)
    assert all_kinds() == {50}


def test_what_a_group_is_given_stays(begin: Begin):
    begin(job_seconds=77)
    assert seconds(dist.new_group([0], timeout=timedelta(seconds=3))) == 3


def test_a_torch_without_the_function_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(distributed_c10d, "_get_default_timeout")
    assert not inherit_timeout(5)


# ---- from the command line to the worker


@pytest.mark.parametrize("wish", [None, 1.0, 77.5, 86400.0])
def test_the_wish_reaches_the_worker(wish: float | None, tmp_path: Path):
    work = Work(
        job="j",
        argv=("train.py",),
        folder="/",
        log_folder="/logs",
        nproc_per_node=1,
        snapshot_every=1,
        parity=0,
        max_restarts=0,
        collective_timeout_seconds=checks.collective_timeout(wish),
    )
    peers = (Peer(0, "node0", "127.0.0.1", 2),)
    form = Form(generation=1, position=0, peers=peers, store_host="127.0.0.1", store_port=1, restore=None, work=work)
    variables = worker_environment(form, 0, node="node0", node_folder=tmp_path)
    job = read_environment(variables).job
    assert job is not None
    assert job.collective_timeout_seconds == wish


@pytest.mark.parametrize("wish", [0.0, -1.0, 0.5, float("nan"), float("inf"), 1e9])
def test_a_wish_that_torch_cannot_count_is_refused(wish: float):
    with pytest.raises(UsageError, match="--collective-timeout must be 1 second to a year"):
        checks.collective_timeout(wish)


def test_nonsense_in_the_environment_is_named():
    variables = {"FTRAIN_NODE_DIR": "/x", "FTRAIN_GENERATION": "1", "FTRAIN_COLLECTIVE_TIMEOUT_SECONDS": "soon"}
    with pytest.raises(EnvironmentInvalid, match="FTRAIN_COLLECTIVE_TIMEOUT_SECONDS='soon'"):
        read_environment(variables)

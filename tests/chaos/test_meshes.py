"""Four nodes as a mesh of 2 x 2 lose one: three are no mesh, so two go on, and it is four again when one comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jobs import Job, holding, ranks_of
from torch import Tensor, nn

STEPS, CAPTURED, BEFORE = 160, (4, 5), 6
"""The ranks wait before these steps: the former are captured, the latter is made after the loss."""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    arguments = ("--steps", str(STEPS), "--pace", "0.4", *holding(*CAPTURED, BEFORE))
    job = Job(tmp_path, "--local-nodes", "2:4", program="meshed.py", arguments=arguments)
    yield job
    job.close()


def trained_alone() -> dict[str, Tensor]:
    """What ``meshed.py`` should come to, by one process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.randn(24, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        nn.functional.mse_loss(model(x), x[:, :4].square()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.named_parameters())


def test_what_is_no_mesh_gives_up_data_parallel_ranks_and_takes_them_in_again(job: Job) -> None:
    job.capture(*CAPTURED, ranks=4)
    job.wait_step(BEFORE - 1, 4)
    job.node("node-0").wait_protected(BEFORE - 1)
    job.kill_nodes("node-1")
    job.wait_step(BEFORE - 1, 2)
    left_over = job.wait_for(lambda s: [n["name"] for n in s["nodes"] if n["state"] == "idle"], "a spare")
    job.go(BEFORE)
    job.wait_for(lambda s: len(ranks_of(s)) == 4, "four nodes")
    (job.out / "quick").touch()
    assert job.wait() == 0, job.tail()
    assert left_over == ["node-3"]
    lost, misfit, grown = job.faults()
    assert [each["kind"] for each in (lost, misfit, grown)] == ["node_lost", "misfit", "grown"]
    assert [each["steps_lost"] for each in (lost, misfit, grown)] == [0, 0, 0]
    assert (lost["resumed_from"], misfit["resumed_from"]) == (BEFORE - 1, BEFORE - 1)
    again = grown["resumed_from"]
    meshes = [line["mesh"] for _, line in sorted(job.steps(0).items())]
    assert meshes == [[2, 2]] * BEFORE + [[1, 2]] * (again + 1 - BEFORE) + [[2, 2]] * (STEPS - 1 - again)
    found, expected = torch.load(job.out / "end.pt"), trained_alone()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

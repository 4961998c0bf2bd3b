"""What a health process measures: wrong bits are seen, quotas are read, and what fails is an answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ftrain.health import compute, machine
from ftrain.health.__main__ import Health
from ftrain.health.words import CheckNode, Failed, NodeFigures, RunPair


def test_one_wrong_bit_in_a_product_is_seen() -> None:
    random = torch.Generator().manual_seed(1)
    for dtype, (rows, inner) in ((torch.float32, (64, 512)), (torch.float16, (32, 2048))):
        most = 7 if dtype is torch.float32 else 1
        a, b = (torch.randint(-most, most + 1, shape, generator=random) for shape in ((rows, inner), (inner, rows)))
        product = (a @ b).to(dtype)
        a, b = a.to(dtype), b.to(dtype)
        assert compute._is_product(a, b, product, random)
        for at in (0, rows * rows - 1):
            wrong = product.clone()
            wrong.view(torch.int16 if dtype is torch.float16 else torch.int32).view(-1)[at] ^= 1 << 12
            assert not compute._is_product(a, b, wrong, random)


def test_a_processor_has_the_same_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_CPU_SECONDS", 1e-6)
    (rate, share, exact, bits), again = compute.cpu(), compute.cpu()
    assert exact
    assert rate > 0
    assert 0 <= share <= 1
    assert again[2:] == (True, bits)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4.0),
        ({"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/job/cpu.max": "150000 100000\n"}, 1.5),
        ({"/proc/self/cgroup": "0::/job\n", "/sys/fs/cgroup/job/cpu.max": "max 100000\n"}, 4.0),
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/job\n3:memory:/\n",
                "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "/proc/self/cgroup": "5:cpu:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
    ],
)
def test_cores_are_those_of_the_quota(files: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.cores() == expected


def test_what_is_written_for_the_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DISK_BYTES", 1 << 20)
    assert machine.disk_mb_per_second(str(tmp_path)) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_finding_and_no_shared_memory_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_CPU_SECONDS", 1e-6)
    monkeypatch.setattr(compute, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_LOOPBACK_BYTES", 1 << 20)
    nowhere = str(tmp_path / "nowhere")
    found = Health().do(CheckNode(nowhere, str(tmp_path)))
    assert isinstance(found, NodeFigures)
    assert found.disk_failure == f"{nowhere}: No such file or directory"
    assert isinstance(Health().do(CheckNode(str(tmp_path), nowhere)), Failed)
    assert Health().do(RunPair()) == Failed("there is no pair to run")

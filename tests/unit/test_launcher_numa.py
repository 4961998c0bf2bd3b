"""Which processors a worker is bound to, near the GPU of its local rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftrain_launcher.commands import devices
from ftrain_launcher.errors import NotBound, UsageError
from ftrain_launcher.processes import numa
from ftrain_launcher.processes.numa import Machine, Processor, look, near, visible

UUIDS = {"0000:18:00.0": "GPU-aa11", "0000:3b:00.0": "GPU-ab22", "0000:86:00.0": "GPU-cc33"}


def machine(gpus: tuple[int, ...] = (0, 0, 1, 1, 1), missing: tuple[int, ...] = ()) -> Machine:
    """Two sockets of two NUMA nodes; each of these with four cores of two threads (0 and 16, ...) and two caches."""
    processors = {
        number: Processor(node=number % 16 // 4, socket=number % 16 // 8, core=number % 16, cache=number % 16 // 2 * 2)
        for number in range(32)
        if number not in missing
    }
    return Machine(gpus, processors)


@pytest.mark.parametrize(
    ("mode", "lane", "processors"),
    [
        ("node", 0, (0, 1, 2, 3, 16, 17, 18, 19)),
        ("node", 2, (4, 5, 6, 7, 20, 21, 22, 23)),
        ("socket", 1, (*range(8), *range(16, 24))),
        ("exclusive", 0, (0, 1, 16, 17)),
        ("exclusive", 1, (2, 3, 18, 19)),
        ("exclusive", 2, (4, 5, 20, 21)),  # four cores for three GPUs: the first has two
        ("exclusive", 3, (6, 22)),
        ("exclusive", 4, (7, 23)),
        ("core-complex", 0, (0, 1, 16, 17)),
        ("core-complex", 1, (2, 3, 18, 19)),
        ("core-complex", 4, (4, 5, 20, 21)),  # two caches for three GPUs: the third shares with the first
    ],
)
def test_what_each_mode_takes(mode: str, lane: int, processors: tuple[int, ...]) -> None:
    assert near(machine(), mode, lane) == processors


def test_exclusive_shares_have_nothing_in_common_and_leave_nothing() -> None:
    shares = [near(machine(), "exclusive", lane) for lane in (2, 3, 4)]
    assert sorted(number for share in shares for number in share) == list(near(machine(), "node", 2))


def test_processors_that_may_not_be_used_are_not() -> None:
    few = machine(missing=(0, 1, 2, 16, 17))
    assert near(few, "node", 0) == (3, 18, 19)
    assert near(few, "core-complex", 0) == (3, 18, 19)  # the cache with the most of them first
    assert near(few, "exclusive", 0) == (18,)


@pytest.mark.parametrize(
    ("gpus", "mode", "lane", "says"),
    [
        ((), "node", 0, "local rank 0 has no GPU"),
        ((0,), "node", 1, "1 NVIDIA GPUs are visible here"),
        ((9,), "node", 0, "no processor of NUMA node 9"),
        ((0,) * 5, "exclusive", 0, "5 GPUs share the 4 cores"),
    ],
)
def test_what_cannot_be(gpus: tuple[int, ...], mode: str, lane: int, says: str) -> None:
    with pytest.raises(NotBound, match=says):
        near(machine(gpus), mode, lane)


@pytest.mark.parametrize(
    ("chosen", "places"),
    [
        (None, [0, 1, 2]),
        ("2, 0", [2, 0]),
        ("1,7,0", [1]),
        ("-1", []),
        ("", []),
        ("GPU-cc33,GPU-aa", [2, 0]),
        ("GPU-a", []),  # of two
        ("MIG-1", []),
    ],
)
def test_gpus_that_cuda_lets_see(chosen: str | None, places: list[int]) -> None:
    assert visible(chosen, UUIDS) == [list(UUIDS)[place] for place in places]


def test_a_machine_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for (place, uuid), node in zip(UUIDS.items(), ("-1\n", "1\n", "0\n"), strict=True):
        write(
            tmp_path / "proc/driver/nvidia/gpus" / place.upper() / "information",
            f"Model: \t H100\nGPU UUID: \t {uuid}\n",
        )
        write(tmp_path / "sys/bus/pci/devices" / place / "numa_node", node)
    for number in range(4):
        cpu = tmp_path / f"sys/devices/system/cpu/cpu{number}"
        write(cpu / "topology/physical_package_id", "0\n")
        write(cpu / "topology/thread_siblings_list", f"{number % 2},{number % 2 + 2}\n")
        for index, (kind, level, shared) in enumerate(
            [("Data", 1, str(number)), ("Instruction", 9, "0"), ("Unified", 3, "1-3" if number else "0")]
        ):
            write(cpu / f"cache/index{index}/type", kind)
            write(cpu / f"cache/index{index}/level", str(level))
            write(cpu / f"cache/index{index}/shared_cpu_list", shared)
        (cpu / f"node{number // 2}").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    found = look({"CUDA_VISIBLE_DEVICES": "1,0"}, tmp_path)
    assert found.gpus == (1, 0)
    assert found.processors == {0: Processor(0, 0, 0, 0), 3: Processor(1, 0, 1, 1)}
    (tmp_path / "sys/devices/system/cpu/cpu3/topology/thread_siblings_list").unlink()
    with pytest.raises(NotBound, match="does not say where"):
        look({}, tmp_path)


def test_a_machine_that_cannot_bind_its_workers_says_so_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numa, "look", lambda _: machine((0, 1)))
    devices.check_binding("node", 2)
    devices.check_binding("", 3)
    with pytest.raises(UsageError, match="--numa-binding node: local rank 2 has no GPU"):
        devices.check_binding("node", 3)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

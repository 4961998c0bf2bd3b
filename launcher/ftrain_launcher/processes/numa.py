"""Which processors a worker is bound to: those near the GPU of its local rank, as torchrun's ``--numa-binding`` has it.

`look` reads from /proc and /sys what this machine has, `near` decides. torch is not asked: that would start CUDA before
the script does. GPUs count in the order of their places on the bus, and CUDA_VISIBLE_DEVICES chooses of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ftrain_launcher.errors import NotBound

MODES = ("node", "socket", "exclusive", "core-complex")
"""All of the GPU's NUMA node; of its socket; a share of the node's cores; cores of the node with one cache."""


@dataclass(frozen=True)
class Processor:
    """Where one logical processor is. Core and cache are called by the lowest processor that has a part in them."""

    node: int
    socket: int
    core: int
    cache: int
    """The largest one."""


@dataclass(frozen=True)
class Machine:
    """What there is to choose from."""

    gpus: tuple[int, ...]
    """The NUMA node of each GPU that workers see, in their order."""
    processors: Mapping[int, Processor]
    """By number; only those that this process may use."""


def near(machine: Machine, mode: str, lane: int) -> tuple[int, ...]:
    """The processors of the worker with this local rank.

    Raises:
        NotBound: it has no GPU, or there are none for it.
    """
    if lane >= len(machine.gpus):
        raise NotBound(f"local rank {lane} has no GPU to be near to: {len(machine.gpus)} NVIDIA GPUs are visible here")
    node = machine.gpus[lane]
    there = [number for number, one in sorted(machine.processors.items()) if one.node == node]
    if not there:
        raise NotBound(f"no processor of NUMA node {node}, near GPU {lane}, may be used here")
    if mode == "node":
        return tuple(there)
    if mode == "socket":
        socket = machine.processors[there[0]].socket
        return tuple(number for number, one in sorted(machine.processors.items()) if one.socket == socket)
    mates = [gpu for gpu, its_node in enumerate(machine.gpus) if its_node == node]
    if mode == "exclusive":
        return _share(_groups(there, lambda number: machine.processors[number].core), mates, lane)
    caches = _groups(there, lambda number: machine.processors[number].cache)
    largest_first = sorted(caches, key=lambda cache: -len(cache))
    return tuple(largest_first[mates.index(lane) % len(largest_first)])


def _share(cores: list[list[int]], mates: list[int], lane: int) -> tuple[int, ...]:
    """One GPU's cores; the first GPUs have one more where they cannot be divided evenly."""
    each, more = divmod(len(cores), len(mates))
    if each == 0:
        raise NotBound(f"{len(mates)} GPUs share the {len(cores)} cores of one NUMA node: there is none for each")
    place = mates.index(lane)
    start = place * each + min(place, more)
    return tuple(sorted(number for core in cores[start : start + each + (place < more)] for number in core))


def _groups(numbers: Iterable[int], key: Callable[[int], int]) -> list[list[int]]:
    """Those that have something in common together, in order of what that is called."""
    groups: dict[int, list[int]] = {}
    for number in sorted(numbers, key=lambda number: (key(number), number)):
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


# ---- what there is


def look(environment: Mapping[str, str], root: Path = Path("/")) -> Machine:
    """This machine, as a worker with these variables would see its GPUs. ``root``: where /proc and /sys are.

    Raises:
        NotBound: it cannot be found out.
    """
    try:
        gpus = [_node_of(gpu, root) for gpu in visible(environment.get("CUDA_VISIBLE_DEVICES"), _uuids(root))]
        processors = {number: _processor(number, root) for number in os.sched_getaffinity(0)} if gpus else {}
    except (OSError, ValueError) as error:
        raise NotBound(f"this machine does not say where its processors and GPUs are: {error}") from error
    return Machine(tuple(gpus), processors)


def visible(chosen: str | None, uuids: Mapping[str, str]) -> list[str]:
    """The places on the bus of the GPUs that CUDA_VISIBLE_DEVICES lets see, up to the first that is none.

    Args:
        chosen: numbers, or UUIDs or how they begin; None: all.
        uuids: of all GPUs, by place, in order.
    """
    if chosen is None:
        return list(uuids)
    found: list[str] = []
    for word in (part.strip() for part in chosen.split(",")):
        if word.isdecimal():
            places = list(uuids)[int(word) : int(word) + 1]
        else:
            places = [place for place, uuid in uuids.items() if word and uuid.startswith(word)]
        if len(places) != 1:
            break
        found += places
    return found


def _uuids(root: Path) -> dict[str, str]:
    """Of NVIDIA's GPUs, by their places on the bus."""
    folder = root / "proc/driver/nvidia/gpus"
    found = {}
    for gpu in sorted(folder.iterdir()) if folder.is_dir() else ():
        lines = (line.partition(":") for line in (gpu / "information").read_text().splitlines())
        found[gpu.name.lower()] = next((text.strip() for key, _, text in lines if key.strip() == "GPU UUID"), "")
    return found


def _node_of(gpu: str, root: Path) -> int:
    """Its NUMA node; a machine that has only one often does not say so, but -1."""
    return max(0, int((root / "sys/bus/pci/devices" / gpu / "numa_node").read_text()))


def _processor(number: int, root: Path) -> Processor:
    folder = root / f"sys/devices/system/cpu/cpu{number}"
    node = next((int(path.name[4:]) for path in folder.glob("node[0-9]*")), 0)
    caches = [cache for cache in folder.glob("cache/index[0-9]*") if _read(cache / "type") in ("Unified", "Data")]
    largest = max(caches, key=lambda cache: int(_read(cache / "level")), default=None)
    return Processor(
        node=node,
        socket=int(_read(folder / "topology/physical_package_id")),
        core=_first(_read(folder / "topology/thread_siblings_list")),
        cache=number if largest is None else _first(_read(largest / "shared_cpu_list")),
    )


def _read(path: Path) -> str:
    return path.read_text().strip()


def _first(ranges: str) -> int:
    """Of a list like ``0-3,8``, which is in order."""
    return int(ranges.replace("-", ",").split(",")[0])

"""A job's memory without a job: ranks with every kind of state, captured into arenas.

As a program it forks writers on demand, one after another or several at once, that can be killed on the way; torch is
imported once for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from collections import OrderedDict, deque
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import nn

from ftrain.capture import Capturer
from ftrain.durable import writer
from ftrain.durable.source import FoldersSource
from ftrain.gradients import live_gradients
from ftrain.looks import Tensors
from ftrain.rng import rng_state
from ftrain.sampler import ElasticSampler
from ftrain.state import TensorKey, state_of, tensor_key, unique_parameters
from ftrain_snapshot import arena, storage
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES, Header, checksum, unit_bytes
from ftrain_snapshot.words import SnapshotId


class Net(nn.Module):
    """Tied, bf16, channels-last, 0-dim, empty, transient: what a state dict can hold."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.first.weight
        self.rough = nn.Linear(width, width, dtype=torch.bfloat16)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("scale", torch.tensor(2.5))
        self.register_buffer("hidden", torch.arange(5.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.tied(self.first(x)))
        return self.rough(y.to(torch.bfloat16)).float().sum() + self.conv(x.new_ones(1, 3, 5, 5)).sum()


class Custom:
    """State of the user's own making, different on each rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def state_dict(self) -> dict[str, Any]:
        state = {
            "numbers": {1: 2**70, "nested": [1, (2, 3.5), {"x": None}], "nan": float("inf")},
            "array": np.arange(6, dtype=np.int16).reshape(2, 3) + self.rank,
            "recent": deque([1, 2, self.rank], maxlen=4),
            "pair": (torch.arange(3) + self.rank, "text ä"),
            "list": [torch.full((2, 2), self.rank + 0.5), torch.tensor(7)],
            "ordered": OrderedDict(a=torch.tensor([True, False]), b=b"\0\xff"),
            "empty": {},
            "view": torch.arange(12.0).reshape(3, 4).t()[::2] + self.rank,
        }
        return state if self.rank == 0 else state | {"only": [self.rank], "mine": torch.tensor([self.rank])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def build(rank: int, world_size: int, *, width: int = 16, steps: int = 2) -> dict[str, Any]:
    """The tracked objects of a rank after some steps: parameters as DDP leaves them, buffers of the rank's own."""
    torch.manual_seed(1)
    model, other = Net(width), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    sampler = ElasticSampler(100, global_batch=8, seed=3, rank=rank, world_size=world_size)
    objects = {"model": model, "other": other, "optimizer": adamw, "sgd": sgd, "sampler": sampler, "own": Custom(rank)}
    train(objects, steps)
    model.norm.running_mean += rank
    other[0].weight.grad = torch.full((4, 4), float(rank))
    torch.manual_seed(100 + rank)
    return objects


def train(objects: dict[str, Any], steps: int) -> None:
    """Some steps."""
    model, other, adamw, sgd = (objects[name] for name in ("model", "other", "optimizer", "sgd"))
    for _ in range(steps):
        next(iter(objects["sampler"]))
        (model(torch.randn(6, model.first.in_features)) + other(torch.randn(3, 4)).square().sum()).backward()
        adamw.step()
        sgd.step()
        adamw.zero_grad()
        sgd.zero_grad()


def tree_of(objects: dict[str, Any], step: int) -> dict[str, Any]:
    """What a capture of them holds."""
    return rest_of(objects, step) | {"objects": {name: state_of(tracked) for name, tracked in objects.items()}}


def rest_of(objects: dict[str, Any], step: int) -> dict[str, Any]:
    """As `ftrain.session` adds it."""
    gradients = live_gradients(Tensors(unique_parameters(objects)))
    return {"step": step, "gradients": gradients, "buckets": {}, "rng": rng_state()}


class NoDaemon:
    """Nobody listens."""

    def captured(self, lane: int, snapshot: SnapshotId) -> None: ...
    def sealed(self, lane: int, snapshot: SnapshotId) -> None: ...
    def skip(self, snapshot: SnapshotId) -> None: ...


def capture(
    objects: dict[str, Any],
    rank: int,
    world_size: int,
    snapshot: SnapshotId,
    node_dir: Path,
    lane: int = 0,
    shared: set[TensorKey] | None = None,
) -> None:
    """A worker's capture, into memory that nobody but this test keeps."""
    shared = shared_by_all(objects) if shared is None else shared
    capturer = Capturer(rank, world_size, lambda: shared, lane, NoDaemon())
    capturer.track(objects)
    content = capturer.collect(lambda _: rest_of(objects, snapshot.version))
    manifest = capturer.manifest(snapshot.version, content)
    if not arena.table_path(node_dir, snapshot.slot, lane).exists():
        allocate(node_dir, lane, unit_bytes(content.data_bytes, len(manifest)))
    mapped = Lane(node_dir, lane)
    capturer.begin(snapshot, content, manifest, mapped)
    capturer.close()
    assert mapped.regions[snapshot.slot].read(snapshot)[1] == manifest
    mapped.close()


def shared_by_all(objects: dict[str, Any]) -> set[TensorKey]:
    """Parameters and what optimizers keep for them."""
    shared = {tensor_key(parameter) for parameter in unique_parameters(objects)}
    for tracked in objects.values():
        if isinstance(tracked, torch.optim.Optimizer):
            values = (value for state in tracked.state.values() for value in state.values())
            shared |= {tensor_key(value) for value in values if isinstance(value, torch.Tensor)}
    return shared


def allocate(node_dir: Path, lane: int, unit: int) -> None:
    """Homes and tables, as the daemon makes them."""
    node_dir.mkdir(parents=True, exist_ok=True)
    size = arena.home_bytes(unit)
    for slot in range(arena.SLOTS):
        for path, length in (
            (arena.home_path(node_dir, slot, lane), size),
            (arena.table_path(node_dir, slot, lane), arena.table_bytes(size)),
        ):
            if not path.exists() or path.stat().st_size < length:
                with open(path, "ab") as file:
                    file.truncate(length)


def seal(node_dir: Path, lane: int, rank: int, world_size: int, snapshot: SnapshotId, unit: tuple[bytes, bytes, int]):
    """Any bytes into the slot."""
    data, manifest, digest = unit
    allocate(node_dir, lane, unit_bytes(len(data), len(manifest)))
    mapped = Lane(node_dir, lane)
    region = mapped.regions[snapshot.slot]
    header = Header(
        snapshot=snapshot,
        rank=rank,
        world_size=world_size,
        data_bytes=len(data),
        manifest_bytes=len(manifest),
        digest=digest,
        manifest_checksum=checksum(manifest),
    )
    region.begin(header)
    whole = data.ljust(header.manifest_offset, b"\0") + manifest
    whole = whole.ljust(header.unit_bytes, b"\0")
    for chunk in range(header.chunks):
        piece = whole[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        region.place(chunk)
        region.put(chunk * CHUNK_BYTES, piece)
        region.record(chunk, checksum(piece))
    region.publish(header.chunks, header.unit_bytes)
    region.seal()
    mapped.close()


def damage(node_dir: Path, lane: int, slot: int, offset: int) -> None:
    """Flip a bit of the unit."""
    mapped = Lane(node_dir, lane)
    mapped.regions[slot].chunk(offset // CHUNK_BYTES)[offset % CHUNK_BYTES] ^= 1
    mapped.close()


class Killer:
    """Counts what a writer does to storage and arenas, and SIGKILLs it when it does it for the n-th time."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        for owner, name in (
            (FoldersSource, "read"), (storage.Storage, "claim"), (storage.Storage, "remove"), (storage.Stream, "mark"),
            (storage.Storage, "size"), (storage, "_sync_folder"), (os, "fsync"),
        ):  # fmt: skip
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted


def write(root: Path | None, arguments: list[str], kill_at: int) -> int:
    """One writer, in this process; over ROOT/node*, or as it is. Says on stdout how often it could have been killed."""
    killer = Killer(kill_at)

    def open_source(given: argparse.Namespace) -> FoldersSource:
        assert root is not None
        return FoldersSource({p: root / f"node{p}" for p in range(given.positions)}, given.snapshot)

    code = writer.main(arguments, None if root is None else open_source)
    print(killer.count, flush=True)
    return code


def serve() -> None:
    """A line of JSON is several writers at once, [[root, arguments, kill_at], ...]; the answer is how each ended."""
    for line in sys.stdin:
        with ExitStack() as files:
            children = []
            for root, arguments, kill_at in json.loads(line):
                said = [files.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
                pid = os.fork()
                if pid == 0:
                    _child(None if root is None else Path(root), arguments, kill_at, said)
                children.append((pid, said))
            print(json.dumps([_end(pid, *said) for pid, said in children]), flush=True)


def _child(root: Path | None, arguments: list[str], kill_at: int, said: list[IO[bytes]]) -> NoReturn:
    code = 1
    try:
        for target, file in enumerate(said, 1):
            os.dup2(file.fileno(), target)
        code = write(root, arguments, kill_at)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(pid: int, out: IO[bytes], err: IO[bytes]) -> tuple[int, int, str]:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for file in (out, err):
        file.seek(0)
    return code, int(out.read() or 0), err.read().decode()


if __name__ == "__main__":
    serve()

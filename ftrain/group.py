"""Forms the process group: the same call under `ftrain run`, torchrun and plain python.

Under `ftrain run` the generation's store already runs elsewhere: every rank is its client, and every key is new.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from ftrain.environment import WorkerEnvironment
from ftrain.sever import sockets

STORE_TIMEOUT = timedelta(seconds=300)
"""Longest wait for another rank while a group is formed."""
CONNECT_TIMEOUT = timedelta(seconds=0.5)
"""Of one try to reach the store, where a worker may be told to leave meanwhile."""
_RETRY_SECONDS = 0.02


def choose_device(environment: WorkerEnvironment) -> torch.device:
    """This rank's GPU if there is one for every rank of the node, else the CPU."""
    needed = 1 if environment.own_gpu else environment.local_world_size
    if torch.cuda.is_available() and torch.cuda.device_count() >= needed:
        return torch.device("cuda", environment.device_index)
    return torch.device("cpu")


def connect_store(environment: WorkerEnvironment) -> TCPStore:
    """A connection of our own to the store of the generation (threads of one client wait for each other)."""
    assert environment.master_addr is not None
    assert environment.master_port is not None
    host, port = environment.master_addr, environment.master_port
    if environment.job is None or not environment.job.in_process:
        return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT)
    # To a store that has gone torch goes on connecting, and cannot be made to leave: Python can.
    deadline = time.monotonic() + STORE_TIMEOUT.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), CONNECT_TIMEOUT.total_seconds()).close()
            with sockets.watch():
                store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
            store.set_timeout(STORE_TIMEOUT)
            return store
        except (OSError, dist.DistError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)  # nobody tells when the store's port is open


@contextmanager
def process_group(environment: WorkerEnvironment, device: torch.device) -> Iterator[None]:
    """The default process group, unless the script has formed one itself. Destroyed at an orderly end only.

    After an error the group may be broken, and taking it down could wait for a lost peer: the process ends anyway.
    """
    if dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Both backends where there are GPUs: restored bytes travel as CPU tensors.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if environment.job is not None:
        seconds = environment.job.collective_timeout_seconds
        timeout = None if seconds is None else timedelta(seconds=seconds)
        store = PrefixStore(f"ftrain/group/{environment.job.generation}", connect_store(environment))
        dist.init_process_group(
            backend, store=store, timeout=timeout, rank=environment.rank, world_size=environment.world_size
        )
    elif environment.launched:
        dist.init_process_group(backend)
    else:
        with _loopback():
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@contextmanager
def _loopback() -> Iterator[None]:
    # One process needs no network; gloo would look up the host's own name, which not every machine can.
    if "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]

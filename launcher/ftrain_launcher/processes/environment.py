"""The environment of a worker: torchrun's variables, so that any script runs unchanged, and ftrain's own.

With TORCHELASTIC_USE_AGENT_STORE every rank joins the generation's store as a client; the store itself is a
process of its own, a fresh one per generation, so that no key of an older one is ever read (FACTS 5).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from ftrain_snapshot.messages import Origin, SnapshotId
from ftrain_snapshot.storage import DurableId


def worker_environment(
    *,
    job: str,
    node: str,
    node_dir: Path,
    generation: int,
    rank: int,
    local_rank: int,
    world_size: int,
    nproc_per_node: int,
    position: int,
    nodes: int,
    master_addr: str,
    master_port: int,
    snapshot_every: int,
    max_restarts: int,
    demote_after_nan: bool = True,
    check_replicas: int = 100,
    collective_timeout_seconds: float | None = None,
    deterministic_reduction: bool = False,
    in_process: bool = False,
    restore: SnapshotId | None = None,
    origin: Origin | None = None,
    durable_start: DurableId | None = None,
    interface: str = "",
    user: Mapping[str, str] | None = None,
    role: str = "default",
    error_file: Path | None = None,
    virtual_local_rank: bool = False,
) -> dict[str, str]:
    """The variables that one worker gets on top of its agent's own environment.

    Args:
        position: the node's place in the job, torchrun's group rank.
        nodes: how many nodes the job has, torchrun's group world size.
        restore: the snapshot that the generation starts from.
        origin: the same, where another number of nodes captured it.
        durable_start: the checkpoint that it starts from, if there is no snapshot.
        interface: the one that leads to the other nodes ("lo" where all are emulated); empty: let torch find it.
        user: variables that the user set for all workers; they may replace the interface, not the ranks.
        error_file: where torch's ``record`` puts the exception that ends the script.
        virtual_local_rank: it sees its own GPU alone, as number 0.
    """
    snapshot = "" if restore is None else f"{restore.version}:{restore.generation}:{restore.slot}"
    return {
        **_interface_variables(interface, os.environ),
        **(user or {}),
        "RANK": str(rank),
        "LOCAL_RANK": "0" if virtual_local_rank else str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(nproc_per_node),
        "GROUP_RANK": str(position),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": role,
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
        "TORCHELASTIC_RESTART_COUNT": str(generation - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "TORCHELASTIC_RUN_ID": job,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": "" if error_file is None else str(error_file),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "FTRAIN_JOB": job,
        "FTRAIN_NODE": node,
        "FTRAIN_NODE_DIR": str(node_dir),
        "FTRAIN_GENERATION": str(generation),
        "FTRAIN_RESTORE": snapshot,
        "FTRAIN_ORIGIN": "" if origin is None else msgspec.json.encode(origin).decode(),
        "FTRAIN_DURABLE": "" if durable_start is None else f"{durable_start.step}:{durable_start.path}",
        "FTRAIN_SNAPSHOT_EVERY": str(snapshot_every),
        "FTRAIN_DEMOTE_AFTER_NAN": str(int(demote_after_nan)),
        "FTRAIN_CHECK_REPLICAS": str(check_replicas),
        "FTRAIN_COLLECTIVE_TIMEOUT_SECONDS": str(collective_timeout_seconds or ""),
        "FTRAIN_DETERMINISTIC_REDUCTION": str(int(deterministic_reduction)),
        **({"FTRAIN_IN_PROCESS": "1"} if in_process else {}),
        "FTRAIN_RECORDER": {**os.environ, **(user or {})}.get("FTRAIN_RECORDER", "1"),
        **(_own_gpu(local_rank, {**os.environ, **(user or {})}) if virtual_local_rank else {}),
    }


def _own_gpu(local_rank: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """One of the GPUs that the node may use; ftrain itself goes on counting the node's workers."""
    visible = inherited.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(local_rank)] if visible is None else visible.split(",")[local_rank : local_rank + 1]
    return {"CUDA_VISIBLE_DEVICES": "".join(gpus).strip(), "FTRAIN_LANE": str(local_rank)}


_LOOPBACK = "lo"


def _interface_variables(interface: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Gloo would look up the host's own name, which may lead anywhere; what the user has set on this host stays."""
    if interface in ("", _LOOPBACK):
        return {"GLOO_SOCKET_IFNAME": interface} if interface else {}
    names = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: interface for name in names if name not in inherited}


def interface_of(address: str) -> str:
    """The network interface of this host that has an address; empty: none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            return name
    return ""

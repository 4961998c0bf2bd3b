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

from ftrain_launcher.to_agent import Form


def worker_environment(
    form: Form, lane: int, *, node: str, node_folder: Path, interface: str = "", error_file: Path | None = None
) -> dict[str, str]:
    """The variables that one worker gets on top of its agent's own environment.

    Args:
        interface: the one that leads to the other nodes ("lo" where all are emulated); empty: let torch find it.
        error_file: where torch's ``record`` puts the exception that ends the script.
    """
    work, user = form.work, form.work.environment  # which may replace the interface, not the ranks
    rank, world_size = form.rank_of(lane), len(form.peers) * work.nproc_per_node
    return {
        **_interface_variables(interface, os.environ),
        **user,
        "RANK": str(rank),
        "LOCAL_RANK": "0" if work.virtual_local_rank else str(lane),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(work.nproc_per_node),
        "GROUP_RANK": str(form.position),
        "GROUP_WORLD_SIZE": str(len(form.peers)),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": work.role,
        "MASTER_ADDR": form.store_host,
        "MASTER_PORT": str(form.store_port),
        "TORCHELASTIC_RESTART_COUNT": str(form.generation - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(work.max_restarts),
        "TORCHELASTIC_RUN_ID": user.get("TORCHELASTIC_RUN_ID", work.job),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_ERROR_FILE": "" if error_file is None else str(error_file),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        "FTRAIN_JOB": work.job,
        "FTRAIN_NODE": node,
        "FTRAIN_NODE_DIR": str(node_folder),
        "FTRAIN_GENERATION": str(form.generation),
        **_start_variables(form),
        "FTRAIN_SNAPSHOT_EVERY": str(work.snapshot_every),
        "FTRAIN_DEMOTE_AFTER_NAN": str(int(work.demote_after_nan)),
        "FTRAIN_CHECK_REPLICAS": str(work.check_replicas),
        "FTRAIN_COLLECTIVE_TIMEOUT_SECONDS": str(work.collective_timeout_seconds or ""),
        "FTRAIN_DETERMINISTIC_REDUCTION": str(int(work.deterministic_reduction)),
        **({"FTRAIN_IN_PROCESS": "1"} if work.in_process else {}),
        **({"FTRAIN_ELASTIC": "1"} if work.elastic or work.durable is not None else {}),
        "FTRAIN_RECORDER": {**os.environ, **user}.get("FTRAIN_RECORDER", "1"),
        **(_own_gpu(lane, {**os.environ, **user}) if work.virtual_local_rank else {}),
    }


def _start_variables(form: Form) -> dict[str, str]:
    """What the generation starts from; all empty: from the beginning."""
    restore, origin, durable = form.restore, form.origin, form.durable_start
    return {
        "FTRAIN_RESTORE": "" if restore is None else f"{restore.version}:{restore.generation}:{restore.slot}",
        "FTRAIN_ORIGIN": "" if origin is None else msgspec.json.encode(origin).decode(),
        "FTRAIN_DURABLE": "" if durable is None else f"{durable.step}:{durable.path}",
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

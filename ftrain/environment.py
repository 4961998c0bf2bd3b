"""The worker's environment, read in this one place.

`ftrain run` gives each worker torchrun's variables and its own (``FTRAIN_*``). Without the latter the script
runs under torchrun or plain python and nothing protects it; without the former it is alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ftrain.errors import EnvironmentInvalid
from ftrain_snapshot.membership import Origin
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId


@dataclass(frozen=True, kw_only=True)
class JobEnvironment:
    """What `ftrain run` adds to torchrun's variables."""

    job: str
    """The job's name."""
    node: str
    """This node's name."""
    node_dir: Path
    """Where the node's shared memory and sockets are."""
    generation: int
    """The generation this process belongs to, from 1."""
    restore: SnapshotId | None
    """The snapshot to start from (None: from the beginning)."""
    snapshot_every: int
    """A snapshot is due after every so many steps; 0: as often as costs little (cadence.py)."""
    origin: Origin | None = None
    """The snapshot to start from where another world captured it (None: there is none, or this world did)."""
    durable: DurableId | None = None
    """The checkpoint on storage to start from (None: there is a snapshot in memory, or nothing)."""
    demote_after_nan: bool = True
    """Two losses in a row that are not finite are a fault: training goes back to a snapshot before the newest."""
    elastic: bool = False
    """The job may go on with another number of ranks: MIN:MAX nodes, or from storage."""
    check_replicas: int = 100
    """Steps between comparisons of what must be equal on several ranks; 0: never."""
    collective_timeout_seconds: float | None = None
    """How long an operation of a process group may take, where the script does not say; None: torch's default."""
    recorder: bool = False
    """This worker's communication is recorded (docs/recorder.md)."""
    in_process: bool = False
    """After a fault elsewhere this process goes on in the next generation (docs/recovery.md)."""
    standby: bool = False
    """This process has no place yet: it stops where the training function is called, and waits for one."""

    @property
    def start(self) -> int | None:
        """The step after which this generation goes on; None: it begins anew."""
        if self.restore is not None:
            return self.restore.version
        if self.origin is not None:
            return self.origin.snapshot.version
        return None if self.durable is None else self.durable.step


@dataclass(frozen=True, kw_only=True)
class WorkerEnvironment:
    """Who this process is."""

    rank: int = 0
    local_rank: int = 0
    """Its number among the node's workers; LOCAL_RANK may say 0 to all, see ``own_gpu``."""
    world_size: int = 1
    local_world_size: int = 1
    own_gpu: bool = False
    """It sees one GPU, which no other worker sees (``--virtual-local-rank``)."""
    master_addr: str | None = None
    """Host of the generation's store (None: there is no launcher)."""
    master_port: int | None = None
    deterministic_reduction: bool = False
    """Gradients are to be summed in an order that no world changes (docs/exactness.md); also without `ftrain run`."""
    job: JobEnvironment | None = None
    """Set under `ftrain run` only."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise EnvironmentInvalid(f"RANK={self.rank} is not below WORLD_SIZE={self.world_size}")
        if self.job is not None and self.master_port is None:
            raise EnvironmentInvalid("FTRAIN_NODE_DIR is set but MASTER_ADDR and MASTER_PORT are not")

    @property
    def device_index(self) -> int:
        """The number of its GPU, among those that it sees."""
        return 0 if self.own_gpu else self.local_rank

    @property
    def launched(self) -> bool:
        """A launcher (ours or torchrun) has said which rank this is and where the store is."""
        return self.master_addr is not None and self.master_port is not None


def read_environment(variables: Mapping[str, str] = os.environ) -> WorkerEnvironment:
    """Read all that ``ftrain`` takes from the environment. Raises EnvironmentInvalid."""
    job = _read_job(variables) if variables.get("FTRAIN_NODE_DIR") else None
    deterministic = _number(variables, "FTRAIN_DETERMINISTIC_REDUCTION", 0) != 0
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if job is None and not all(variables.get(name) for name in names):
        return WorkerEnvironment(deterministic_reduction=deterministic)
    own_gpu = "FTRAIN_LANE" in variables
    return WorkerEnvironment(
        rank=_number(variables, "RANK"),
        local_rank=_number(variables, "FTRAIN_LANE" if own_gpu else "LOCAL_RANK", 0),
        own_gpu=own_gpu,
        world_size=_number(variables, "WORLD_SIZE"),
        local_world_size=_number(variables, "LOCAL_WORLD_SIZE", 1),
        master_addr=variables.get("MASTER_ADDR"),
        master_port=_number(variables, "MASTER_PORT"),
        deterministic_reduction=deterministic,
        job=job,
    )


@dataclass(frozen=True, kw_only=True)
class StoreEnvironment:
    """What the process that hosts a generation's store is told."""

    node_dir: Path
    generation: int
    port: int = 0
    """0: any that is free."""


def read_store_environment(variables: Mapping[str, str] = os.environ) -> StoreEnvironment:
    """Read the store process's part. Raises EnvironmentInvalid."""
    if not variables.get("FTRAIN_NODE_DIR"):
        raise EnvironmentInvalid("FTRAIN_NODE_DIR is not set: this process is started by an ftrain agent")
    return StoreEnvironment(
        node_dir=Path(variables["FTRAIN_NODE_DIR"]),
        generation=_number(variables, "FTRAIN_GENERATION"),
        port=_number(variables, "FTRAIN_STORE_PORT", 0),
    )


def _read_job(variables: Mapping[str, str]) -> JobEnvironment:
    return JobEnvironment(
        job=variables.get("FTRAIN_JOB", ""),
        node=variables.get("FTRAIN_NODE", ""),
        node_dir=Path(variables["FTRAIN_NODE_DIR"]),
        generation=_number(variables, "FTRAIN_GENERATION"),
        restore=_snapshot(variables.get("FTRAIN_RESTORE", "")),
        snapshot_every=max(0, _number(variables, "FTRAIN_SNAPSHOT_EVERY", 1)),
        origin=_origin(variables.get("FTRAIN_ORIGIN", "")),
        durable=_durable(variables.get("FTRAIN_DURABLE", "")),
        demote_after_nan=_number(variables, "FTRAIN_DEMOTE_AFTER_NAN", 1) != 0,
        elastic=_number(variables, "FTRAIN_ELASTIC", 0) != 0,
        check_replicas=max(0, _number(variables, "FTRAIN_CHECK_REPLICAS", 100)),
        collective_timeout_seconds=_seconds(variables, "FTRAIN_COLLECTIVE_TIMEOUT_SECONDS"),
        recorder=_number(variables, "FTRAIN_RECORDER", 0) != 0,
        in_process=_number(variables, "FTRAIN_IN_PROCESS", 0) != 0,
        standby=_number(variables, "FTRAIN_STANDBY", 0) != 0,
    )


def _snapshot(text: str) -> SnapshotId | None:
    if not text:
        return None
    try:
        version, generation, slot = (int(part) for part in text.split(":"))
    except ValueError:
        raise EnvironmentInvalid(f"FTRAIN_RESTORE={text!r} is not version:generation:slot") from None
    return SnapshotId(version, generation, slot)


def _origin(text: str) -> Origin | None:
    try:
        return msgspec.json.decode(text, type=Origin) if text else None
    except msgspec.DecodeError as error:
        raise EnvironmentInvalid(f"FTRAIN_ORIGIN={text!r} is not the origin of a state: {error}") from None


def _durable(text: str) -> DurableId | None:
    if not text:
        return None
    step, colon, path = text.partition(":")
    if not colon or not step.isdigit():
        raise EnvironmentInvalid(f"FTRAIN_DURABLE={text!r} is not step:path")
    return DurableId(int(step), path)


def _seconds(variables: Mapping[str, str], name: str) -> float | None:
    text = variables.get(name, "")
    try:
        return float(text) if text else None
    except ValueError:
        raise EnvironmentInvalid(f"{name}={text!r} is not a number") from None


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise EnvironmentInvalid(f"{name}={text!r} is not a whole number") from None

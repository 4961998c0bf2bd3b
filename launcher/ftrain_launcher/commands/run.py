"""``ftrain run``: instead of torchrun."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.commands.options import Commands, add_command
from ftrain_launcher.errors import UsageError

if TYPE_CHECKING:
    from ftrain_launcher.messages import Work

_ARENA_FREE_BYTES_MIN = 8 * 2**20
_NAME_LENGTH_MAX = 48


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Run a training script and keep it training through killed workers and lost nodes."
    parser = add_command(commands, "run", run, about)
    add = parser.add_argument
    add("--local-nodes", type=int, metavar="N", help="emulate this many nodes on this machine")
    add("--nnodes", default="1", metavar="N", help="nodes of the job; so far 1, or --local-nodes")
    add("--nproc-per-node", default="1", metavar="N", help="workers per node: a number, gpu, cpu or auto")
    add("--spares", type=int, default=0, metavar="N", help="nodes kept ready to take over a lost one's ranks")
    add("--snapshot-every", type=int, default=1, metavar="N", help="steps between snapshots; default 1")
    add("--parity", type=int, metavar="M", help="lost nodes that a group survives; default 1")
    add(
        "--max-restarts",
        type=int,
        default=20,
        metavar="N",
        help="faults in a row without progress that are survived; default 20",
    )
    add(
        "--agent-grace-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="how long a dead agent may take to come back; default 5",
    )
    add(
        "--controller-grace-seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="how long nodes wait for a controller that is away before they end; default 10",
    )
    add("--name", metavar="JOB", help="the job's name; default: made from the script's")
    add("--log-dir", type=Path, metavar="DIR", help="where worker output goes; default: the job's state folder")
    add(
        "--arena-dir",
        type=Path,
        default=Path("/dev/shm"),
        metavar="DIR",
        help="shared memory for snapshots: a tmpfs; default /dev/shm",
    )
    add("--controller", default="127.0.0.1:0", metavar="HOST:PORT", help="where the controller listens; default any")
    add("--engine", choices=["local"], default="local", help="where nodes come from")
    add("-m", "--module", action="store_true", help="SCRIPT is a module's name")
    add("--no-zygote", action="store_true", help="start workers by exec, not by fork from a process with torch")
    add("script", metavar="SCRIPT", help="the training script, or with -m the module")
    add("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments")


def run(chosen: argparse.Namespace) -> int:
    """Check what was asked for, then run the job to its end."""
    from ftrain_launcher.messages import Work

    nodes = _nodes(chosen.nnodes, chosen.local_nodes)
    work = Work(
        job=_job_name(chosen.name, chosen.script),
        argv=(chosen.script if chosen.module else _script(chosen.script), *chosen.arguments),
        kind="module" if chosen.module else "script",
        folder=os.getcwd(),
        log_folder="",
        nproc_per_node=_nproc(chosen.nproc_per_node),
        snapshot_every=_at_least("--snapshot-every", chosen.snapshot_every, 1),
        parity=_parity(chosen.parity, nodes),
        max_restarts=_at_least("--max-restarts", chosen.max_restarts, 0),
        zygote=not chosen.no_zygote,
    )
    return _launch(
        work,
        nodes=nodes,
        spares=_at_least("--spares", chosen.spares, 0),
        agent_grace_seconds=_positive("--agent-grace-seconds", chosen.agent_grace_seconds),
        controller_grace_seconds=_positive("--controller-grace-seconds", chosen.controller_grace_seconds),
        log_dir=chosen.log_dir,
        arena=_arena(chosen.arena_dir, work.job),
        controller=_controller(chosen.controller),
    )


def _launch(
    work: Work,
    *,
    nodes: int,
    spares: int,
    agent_grace_seconds: float,
    controller_grace_seconds: float,
    log_dir: Path | None,
    arena: Path,
    controller: tuple[str, int],
) -> int:
    """Make the job's folder, run it to its end, say how it ended."""
    import msgspec

    from ftrain_launcher import launch
    from ftrain_launcher.events import JobConfig
    from ftrain_launcher.jobs import JobFolder, JobRecord, state_home
    from ftrain_launcher.terminal import announce

    logs = (log_dir or state_home() / "jobs" / work.job / "logs").absolute()
    work = msgspec.structs.replace(work, log_folder=str(logs))
    record = JobRecord(
        name=work.job,
        created=time.time(),
        launcher_pid=os.getpid(),
        arena_folder=str(arena),
        config=JobConfig(work=work, nodes=nodes, spares=spares, agent_grace_seconds=agent_grace_seconds),
        controller_grace_seconds=controller_grace_seconds,
        root_zygote=str(arena / "zygote.sock") if work.zygote else "",
        controller_host=controller[0],
        controller_port=controller[1],
    )
    folder = JobFolder.create(record)
    arena.mkdir(mode=0o700)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        shape = f"{nodes} nodes x {work.nproc_per_node} workers, {spares} spares, parity {work.parity}"
        announce(f"job {work.job}: {shape}; logs in {logs}")
        result = launch.run(folder)
    finally:
        shutil.rmtree(arena, ignore_errors=True)
    if result.exit_code:
        announce(f"error: {result.message}")
    else:
        announce(result.message)
    return result.exit_code


def _nodes(nnodes: str, local_nodes: int | None) -> int:
    if local_nodes is not None:
        return _at_least("--local-nodes", local_nodes, 1)
    if nnodes != "1":
        raise UsageError(f"--nnodes {nnodes}: this version runs on one machine; emulate nodes with --local-nodes")
    return 1


def _nproc(word: str) -> int:
    """A number, or what this machine has."""
    if word.lstrip("-").isdigit():
        return _at_least("--nproc-per-node", int(word), 1)
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").exists() else 0
    cpus = len(os.sched_getaffinity(0))
    if word == "gpu" and gpus == 0:
        raise UsageError("--nproc-per-node gpu: this machine has no NVIDIA GPU; use a number, or cpu")
    choices = {"gpu": gpus, "cpu": cpus, "auto": gpus or cpus}
    if word not in choices:
        raise UsageError(f"--nproc-per-node {word}: give a number, gpu, cpu or auto")
    return choices[word]


def _parity(parity: int | None, nodes: int) -> int:
    if parity is None:
        return 1 if nodes > 1 else 0
    if parity < 1:
        raise UsageError(f"--parity must be at least 1, not {parity}")
    if parity >= nodes:
        raise UsageError(
            f"--parity {parity} with {nodes} nodes: parity lies on other nodes than the data, so at most {nodes - 1}"
        )
    if parity > 1:
        raise UsageError(f"--parity {parity}: this version codes one parity (XOR); use --parity 1")
    return parity


def _at_least(flag: str, value: int, least: int) -> int:
    if value < least:
        raise UsageError(f"{flag} must be at least {least}, not {value}")
    return value


def _positive(flag: str, seconds: float) -> float:
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{flag} must be more than 0, not {seconds:g}")
    return seconds


def _script(script: str) -> str:
    path = Path(script)
    if path.is_dir():
        raise UsageError(f"{script} is a folder, not a training script")
    if not path.exists():
        raise UsageError(f"no such script: {script} (working folder {os.getcwd()})")
    return str(path.absolute())


def _job_name(name: str | None, script: str) -> str:
    from ftrain_launcher.launch import new_job_name

    if name is None:
        return new_job_name(Path(script).stem)
    if not name or len(name) > _NAME_LENGTH_MAX or not all(c.isalnum() or c in "-_." for c in name) or name[0] == ".":
        raise UsageError(f"--name {name!r}: use up to {_NAME_LENGTH_MAX} letters, digits, '-', '_' and '.'")
    return name


def _arena(arena_dir: Path, job: str) -> Path:
    """The job's folder in shared memory; its size is checked again when the state's size is known."""
    if not arena_dir.is_dir():
        raise UsageError(f"--arena-dir {arena_dir}: no such folder")
    free = shutil.disk_usage(arena_dir).free
    if free < _ARENA_FREE_BYTES_MIN:
        raise UsageError(
            f"too little shared memory in {arena_dir}: at least {_ARENA_FREE_BYTES_MIN >> 20} MiB are needed, "
            f"{free >> 20} MiB are free; make it larger, or give --arena-dir another tmpfs"
        )
    arena = arena_dir / f"ftrain-{job}"
    if arena.exists():
        owners = [p for p in arena.glob("*/node.json")]
        if owners and _in_use(arena):
            raise UsageError(f"{arena} is in use by a running job of this name: choose another --name")
        shutil.rmtree(arena, ignore_errors=True)
    return arena


def _in_use(arena: Path) -> bool:
    from ftrain_launcher.node_state import NodeFile

    known = [NodeFile(p.parent).read() for p in arena.glob("*/node.json")]
    return any(Path(f"/proc/{record.agent_pid}").exists() for record in known if record)


def _controller(word: str) -> tuple[str, int]:
    host, colon, port = word.rpartition(":")
    if not colon or not port.isdigit() or not host or int(port) > 65535:
        raise UsageError(f"--controller {word}: give HOST:PORT")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"--controller {word}: the port is in use; choose another, or 0 for any") from error
        raise UsageError(f"--controller {word}: cannot listen there ({error.strerror or error})") from error
    return host, int(port)

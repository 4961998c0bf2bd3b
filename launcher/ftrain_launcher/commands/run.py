"""``ftrain run``: instead of torchrun, on one machine or on each of several hosts."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.commands import checks, devices, durable, files, needs, on_ray, output, starting, tls, torchrun
from ftrain_launcher.commands.flags import Spelling, adder
from ftrain_launcher.commands.options import Commands, add_command
from ftrain_launcher.errors import UsageError

if TYPE_CHECKING:
    from ftrain_launcher.engine_messages import Offer
    from ftrain_launcher.job.events import JobConfig
    from ftrain_launcher.work import Work

_RESTARTS, _CHECK_REPLICAS, _ABORT_GRACE_SECONDS = 20, 100, 2.0
"""Where the user says nothing."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Run a training script and keep it training through killed workers and lost nodes."
    parser = add_command(commands, "run", run, about)
    parser.allow_abbrev = True  # as torchrun's; see `cli.Parser`
    parser.formatter_class = Spelling
    add = adder(parser)
    _add_nodes(add)
    _add_faults(add)
    _add_job(add)
    _add_processes(add)
    torchrun.add_options(parser)
    add("script", metavar="SCRIPT", help="the training script, or with -m the module")
    add("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="its arguments").required = False


def _add_nodes(add: Callable[..., object]) -> None:
    about = "hosts of the job; run the same command on each; MIN:MAX: it goes on with as few as MIN; default 1"
    add("--nnodes", default="1", metavar="N|MIN:MAX", help=about)
    add("--local-nodes", metavar="N|MIN:MAX", help="emulate this many nodes on this machine")
    add("--nproc-per-node", default="1", metavar="N", help="workers per node: a number, gpu, cpu or auto")
    add("--spares", type=int, default=0, metavar="N", help="nodes kept ready to take over a lost one's ranks")
    add("--snapshot-every", default="1", metavar="N|auto", help="steps between snapshots; auto: by cost; default 1")
    add("--parity", type=int, metavar="M", help="lost nodes that a group survives, up to 4; default 1, 2 from 5 nodes")
    add("--preflight", action="store_true", help="check every node first; one that fails gives way to a spare")
    add("--codec", choices=["auto", "numpy", "isal", "zfec"], default="auto", help="what computes parity; default auto")
    add("--protect-bandwidth", metavar="RATE", help="what a node may send for parity, like 500M bytes a second")
    add("--failure-domain", metavar="LABEL", help="this host's rack or switch; emulated: a label a node, with commas")


def _add_faults(add: Callable[..., object]) -> None:
    add(
        "--demote-after-nan",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after two losses in a row that are not finite, go back to the snapshot before the newest; default on",
    )
    add(
        "--max-restarts",
        type=int,
        metavar="N",
        help=f"faults in a row without progress that are survived; default {_RESTARTS}",
    )
    durable.add_options(add)
    _add_waits(add)
    about = "what process groups have where the script gives none; default: torch's"
    about_replicas = f"steps between comparisons of what ranks must hold equal; 0: never; default {_CHECK_REPLICAS}"
    add("--check-replicas", type=int, metavar="N", help=about_replicas)
    add("--collective-timeout", type=float, metavar="SECONDS", help=about)
    about_order = "sum gradients in one order at any world size, to the last bit; needs ctx.microbatches"
    add("--deterministic-reduction", action="store_true", help=about_order)
    add(
        "--detect",
        choices=["act", "warn", "off"],
        default="act",
        help="what follows when a rank hangs or a link breaks: act (restart, take nodes out), warn (only tell) or off",
    )
    add("--isolate-slow", action="store_true", help="take out nodes that stay slow; else they are only told")


def _add_job(add: Callable[..., object]) -> None:
    add("--name", metavar="JOB", help="the job's name; default: made from the script's")
    about = "SIGTERM is a notice, S seconds ahead: the job is flushed (docs/launching.md); else it ends the job"
    add("--flush-seconds", type=float, metavar="S", help=about)
    output.add_options(add)
    add(
        "--arena-dir",
        type=Path,
        default=Path("/dev/shm"),
        metavar="DIR",
        help="shared memory for snapshots: a tmpfs; default /dev/shm",
    )
    add("--controller", metavar="HOST:PORT", help="where the controller listens; with --nnodes: on the host HOST")
    about = "hosts that may run it: the first does, another if that is lost; instead of --controller"
    add("--controller-candidates", metavar="HOST[:PORT],...", help=about)
    add("--node-rank", type=int, metavar="R", help="this host's place among several; default: in order of joining")
    add("--secret-file", type=Path, metavar="FILE", help="what all hosts know: only those that do can join")
    tls.add_options(add)


def _add_processes(add: Callable[..., object]) -> None:
    about = "local; ray: a Ray cluster; host: this one, also with --nnodes 1; none: only the controller; default local"
    add("--engine", choices=["local", "host", "none", "ray"], default="local", help=f"where nodes come from: {about}")
    on_ray.add_options(add)
    add("-m", "--module", action="store_true", help="SCRIPT is a module's name")
    about = "processes on each node that wait for a rank to be lost; default 0"
    add("--standby", type=int, default=0, metavar="N", help=about)
    about = "after a fault, survivors go on in the same processes (docs/recovery.md); default: with --standby"
    add("--in-process", action=argparse.BooleanOptionalAction, help=about)
    add("--no-zygote", action="store_true", help="start workers by exec, not by fork from a process with torch")


def _add_waits(add: Callable[..., object]) -> None:
    for flag, default, about in (
        ("--heartbeat-timeout-seconds", 10.0, "how long a node may be silent before it counts as away"),
        ("--agent-grace-seconds", 5.0, "how long a node that is away may take to come back"),
        ("--controller-grace-seconds", 10.0, "how long nodes wait for a controller that is away before they end"),
        ("--join-timeout-seconds", 300.0, "how long hosts wait for the controller, and the job for hosts"),
        ("--shrink-after-seconds", 0.0, "with MIN:MAX: how long a lost node is waited for before going on with fewer"),
    ):
        add(flag, type=float, default=default, metavar="S", help=f"{about}; default {default:g}")
    about = f"how long a worker may take to leave before it is killed; default {_ABORT_GRACE_SECONDS:g}"
    add("--abort-grace-seconds", type=float, metavar="S", help=f"with --in-process: {about}")


def run(chosen: argparse.Namespace) -> int:
    """Check what was asked for, then run the job, or this host's part of it, to its end."""
    torchrun.settle(chosen)
    needs.check(chosen)
    least, nodes, hosts = checks.nodes(chosen.nnodes, chosen.local_nodes)
    hosts = hosts or chosen.engine != "local"
    if chosen.engine == "ray":
        return on_ray.run(chosen, lambda: _config(chosen, least, nodes, hosts=hosts))
    config = _config(chosen, least, nodes, hosts=hosts)
    shared_secret = checks.secret(chosen.secret_file)
    here = 1 if hosts else nodes + config.spares
    domains = checks.failure_domains(chosen.failure_domain, here)
    rank = checks.node_rank(chosen.node_rank, nodes, hosts=hosts)
    candidates = checks.candidates(chosen.controller_candidates, chosen.controller, hosts=hosts)
    if candidates:
        offer = _offer(config, chosen.name, rank)
        return _run_with(candidates, chosen, config, offer, shared_secret, domains)
    if chosen.controller is None and hosts:
        raise UsageError(f"--nnodes {chosen.nnodes}: say with --controller HOST:PORT on which host the controller runs")
    host, port = checks.controller(chosen.controller or "127.0.0.1:0")
    address = checks.address_if_ours(host, port) if hosts else checks.address_to_listen(host, port)
    offer = _offer(config, chosen.name, rank)
    if address is None:
        if chosen.engine == "none":
            raise UsageError(f"--engine none: {host}:{port} is not of this machine, or in use")
        return starting.join(chosen, offer, ((host, port),), shared_secret, domains)
    return starting.lead(chosen, config, offer, (address, port), shared_secret, domains)


def _run_with(
    candidates: tuple[str, ...],
    chosen: argparse.Namespace,
    config: JobConfig,
    offer: Offer,
    shared_secret: bytes | None,
    domains: tuple[str, ...],
) -> int:
    """Several hosts may run the controller: the first one leads, unless the job goes on without it already."""
    import msgspec

    own = checks.own_candidate(candidates)
    if own is not None and own[0] == 0 and not checks.anybody_at(candidates[1:]):
        config = msgspec.structs.replace(config, candidates=candidates)
        return starting.lead(chosen, config, offer, own[1:], shared_secret, domains)
    places = tuple(checks.controller(place) for place in candidates)
    return starting.join(chosen, offer, places, shared_secret, domains, own)


def _config(chosen: argparse.Namespace, least: int, nodes: int, *, hosts: bool) -> JobConfig:
    from ftrain_launcher.job.events import LAST_CALL_SECONDS, Detect, JobConfig

    work, last_call = _work(chosen, least, nodes, hosts=hosts), chosen.last_call_seconds
    config = JobConfig(
        work=work,
        nodes=nodes,
        nodes_min=least if least < nodes else None,
        shrink_after_seconds=checks.not_negative("--shrink-after-seconds", chosen.shrink_after_seconds),
        spares=checks.at_least("--spares", chosen.spares, 0),
        preflight=chosen.preflight,
        hosts=hosts,
        host_wait_seconds=checks.positive("--join-timeout-seconds", chosen.join_timeout_seconds),
        last_call_seconds=LAST_CALL_SECONDS if last_call is None else checks.not_negative("--rdzv-conf", last_call),
        heartbeat_timeout_seconds=checks.positive("--heartbeat-timeout-seconds", chosen.heartbeat_timeout_seconds),
        agent_grace_seconds=checks.positive("--agent-grace-seconds", chosen.agent_grace_seconds),
        shutdown_grace_seconds=checks.not_negative("--shutdown-timeout", chosen.shutdown_timeout),
        detect=Detect(chosen.detect),
        isolate_slow=chosen.isolate_slow,
    )
    checks.positive("--controller-grace-seconds", chosen.controller_grace_seconds)
    if chosen.flush_seconds is not None:
        checks.positive("--flush-seconds", chosen.flush_seconds)
    return config


def _work(chosen: argparse.Namespace, least: int, nodes: int, *, hosts: bool) -> Work:
    from ftrain_launcher.work import Work

    workers, restarts = devices.workers(chosen.nproc_per_node), chosen.max_restarts
    return Work(
        job=_new_name(chosen) if chosen.name is None else checks.job_name(chosen.name),
        argv=(_program(chosen), *chosen.arguments),
        kind=torchrun.kind(chosen),
        role=chosen.role,
        streams=output.streams(chosen),
        environment=torchrun.variables(chosen),
        numa_binding=chosen.numa_binding,
        virtual_local_rank=devices.virtual_local_rank(chosen.virtual_local_rank, workers),
        store_port=checks.free_port("--master-port", torchrun.store_port(chosen, hosts=hosts)),
        folder=os.getcwd(),
        log_folder="",
        nproc_per_node=workers,
        snapshot_every=checks.snapshot_every(chosen.snapshot_every),
        parity=checks.parity(chosen.parity, nodes),
        codec=checks.codec(chosen.codec),
        protect_bytes_per_second=checks.bytes_per_second("--protect-bandwidth", chosen.protect_bandwidth),
        max_restarts=checks.at_least("--max-restarts", _RESTARTS if restarts is None else restarts, 0),
        restarts_chosen=restarts is not None,
        demote_after_nan=chosen.demote_after_nan,
        check_replicas=checks.at_least(
            "--check-replicas", _CHECK_REPLICAS if chosen.check_replicas is None else chosen.check_replicas, 0
        ),
        collective_timeout_seconds=checks.collective_timeout(chosen.collective_timeout),
        elastic=least < nodes,
        deterministic_reduction=chosen.deterministic_reduction,
        durable=durable.durable(chosen),
        zygote=not chosen.no_zygote,
        in_process=checks.in_process(chosen.in_process, chosen.standby),
        standby=checks.at_least("--standby", chosen.standby, 0),
        abort_grace_seconds=checks.abort_grace(
            _ABORT_GRACE_SECONDS if chosen.abort_grace_seconds is None else chosen.abort_grace_seconds
        ),
    )


def _program(chosen: argparse.Namespace) -> str:
    """The script, made absolute; a module or a program keeps its name."""
    if (kind := torchrun.kind(chosen)) == "script":
        return files.script(chosen.script)
    if kind == "exec" and shutil.which(chosen.script) is None:
        raise UsageError(f"--no-python {chosen.script}: there is no such program, or it cannot be executed")
    return files.module(chosen.script) if kind == "module" and chosen.engine != "none" else str(chosen.script)


def _new_name(chosen: argparse.Namespace) -> str:
    """A name for a job whose user gave none."""
    is_module = torchrun.kind(chosen) == "module"
    stem = chosen.script.rpartition(".")[2] if is_module else Path(chosen.script).stem
    word = "".join(c if c.isalnum() else "-" for c in stem).strip("-")[:24] or "job"
    return f"{word}-{int(time.time()) % 100000:05d}-{os.getpid() % 10000:04d}"


def _offer(config: JobConfig, name: str | None, node_rank: int | None) -> Offer:
    from ftrain_launcher.engine_messages import Offer

    return Offer(
        launcher=secrets.token_hex(8),
        hostname=socket.gethostname(),
        job=name or "",
        kind=config.work.kind,
        argv=config.work.argv,
        nodes=config.nodes,
        nodes_min=config.nodes_min,
        nproc_per_node=config.work.nproc_per_node,
        parity=config.work.parity,
        node_rank=node_rank,
        role=config.work.role,
    )

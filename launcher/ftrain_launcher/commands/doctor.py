"""``ftrain doctor``: what this machine has for a job, measured here and now; or, with ``--nodes``, a job's nodes.

The first needs no job and starts none. The report is a plain dictionary with one entry per subject; printing it is
apart from finding it out.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.commands.text import print_line, print_table
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder

ARENA_FOLDER = "/dev/shm"
_ROUND_SECONDS = 600.0
STRIPES = ((3, 1), (4, 2))
"""Data and parity chunks of the stripes that engines are measured on."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = (
        "Check this machine, or the nodes of a job: processors, memory, disk, links, versions; who is slow or wrong."
    )
    parser = add_command(commands, "doctor", doctor, about)
    some = "check nodes of a job that runs: these (names or positions, with commas), or all"
    parser.add_argument("--nodes", nargs="?", const="", metavar="NAME,...", help=some)
    add_job_options(parser)


def doctor(chosen: argparse.Namespace) -> int:
    """Print the report; 1: something is bad."""
    if chosen.nodes is not None:
        return _nodes(chosen)
    if chosen.job is not None:
        raise UsageError(f"--job {chosen.job}: only with --nodes")
    report: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "arena": arena(ARENA_FOLDER),
        "codec": codecs(),
        "node": node(ARENA_FOLDER),
    }
    if chosen.json:
        print_json(report)
    else:
        show(report)
    return 0 if report["node"]["state"] != "bad" else 1


def _nodes(chosen: argparse.Namespace) -> int:
    from ftrain_launcher import query
    from ftrain_launcher.health.table import text

    folder = JobFolder.find(chosen.job)
    if folder.result() is not None:
        raise UsageError(f"job {folder.record().name!r} has ended: it has no nodes to check")
    names = [name.strip() for name in chosen.nodes.split(",") if name.strip()]
    answer = query.ask(folder, "/api/health", {"nodes": names}, _ROUND_SECONDS)
    if chosen.json:
        print_json(answer)
    else:
        print_line(text(answer))
    return 0 if answer["ok"] else 1


def node(arena_folder: str) -> dict[str, Any]:
    """What one node can do alone, as for a job's nodes (docs/health.md); nothing to compare it with."""
    from ftrain_launcher.health.local import check

    return check(os.getcwd(), arena_folder)


def arena(folder: str) -> dict[str, Any]:
    """The shared memory in which snapshots are kept."""
    found = os.statvfs(folder)
    return {
        "folder": folder,
        "bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
    }


def codecs() -> dict[str, Any]:
    """Which engine ``--codec auto`` takes, and each engine's speed, or why it is not here."""
    from ftrain_snapshot.codec import ENGINES, choose

    return {"auto": choose("auto").name, "engines": [_engine(name) for name in ENGINES]}


def _engine(name: str) -> dict[str, Any]:
    from ftrain_snapshot.codec import load
    from ftrain_snapshot.codec.speed import measure
    from ftrain_snapshot.errors import CodecUnsupported

    try:
        engine = load(name)
    except CodecUnsupported as error:
        return {"name": name, "available": False, "reason": str(error), "speeds": []}
    speeds = [measure(engine, data, parity) for data, parity in STRIPES]
    return {"name": name, "available": True, "reason": None, "speeds": speeds}


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    memory, codec = report["arena"], report["codec"]
    print_line(f"cores: {report['cores']}")
    print_line(f"arena: {memory['folder']}, {memory['bytes']:,} bytes, {memory['free_bytes']:,} free")
    print_line(f"codec: {codec['auto']} (what --codec auto takes here); GB/s of data, one thread:")
    heads = [f"{what} {data}+{parity}" for data, parity in STRIPES for what in ("encode", "decode")]
    rows = []
    for engine in codec["engines"]:
        speeds = [f"{x:.1f}" for s in engine["speeds"] for x in (s.encode_gb_per_second, s.decode_gb_per_second)]
        rows.append([engine["name"], *(speeds or ["-"] * len(heads))])
    print_table(["engine", *heads], rows)
    for engine in codec["engines"]:
        if not engine["available"]:
            print_line(f"{engine['name']}: {engine['reason']}")
    _show_node(report["node"])


def _show_node(found: dict[str, Any]) -> None:
    figures = found["figures"]
    if figures is not None:
        disk = figures["disk_mb_per_second"]
        print_line(
            f"processor: {figures['matmul_gflops']:.1f} GFLOP/s a thread, "
            f"which got {figures['cpu_share']:.0%} of a core; "
            f"memory {figures['memory_gb_per_second']:.1f} GB/s, "
            f"loopback {figures['loopback_gb_per_second']:.1f} GB/s, "
            f"disk here {'-' if disk is None else format(disk, '.0f')} MB/s"
        )
        for index, gpu in enumerate(figures["gpus"]):
            print_line(
                f"GPU {index}: {gpu['name']}, {gpu['matmul_tflops']} TFLOP/s, {gpu['memory_gb_per_second']} GB/s"
            )
        print_line(f"python {figures['python']}, torch {figures['torch']}, ftrain {figures['ftrain']}")
    print_line("; ".join([f"health: {found['state']}", *found["reasons"]]))

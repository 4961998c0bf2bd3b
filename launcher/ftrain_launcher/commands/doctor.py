"""``ftrain doctor``: what this machine has for a job, measured here and now. It needs no job and starts none.

The report is a plain dictionary with one entry per subject; printing it is apart from finding it out.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ftrain_launcher.commands.options import Commands, add_command, print_json
from ftrain_launcher.commands.text import print_line, print_table

ARENA_FOLDER = "/dev/shm"
STRIPES = ((3, 1), (4, 2))
"""Data and parity chunks of the stripes that engines are measured on."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Show what this machine has for a job: cores, shared memory, codecs and how fast they are."
    parser = add_command(commands, "doctor", doctor, about)
    parser.add_argument("--json", action="store_true", help="print JSON, as documented in docs/operations.md")


def doctor(chosen: argparse.Namespace) -> int:
    """Print the report."""
    report = {"cores": len(os.sched_getaffinity(0)), "arena": arena(ARENA_FOLDER), "codec": codecs()}
    if chosen.json:
        print_json(report)
    else:
        show(report)
    return 0


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

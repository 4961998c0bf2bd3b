"""``ftrain snapshots``: what a job holds in memory; with ``--verify``, whether every byte of it is what it was."""

from __future__ import annotations

import argparse
from typing import Any

from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.commands.show import ask_or_replay
from ftrain_launcher.commands.text import print_line, print_table
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder

_VERIFY_SECONDS = 600.0


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Show the versions in memory: levels, bytes per node, where the parity lies; or check every byte of them."
    parser = add_command(commands, "snapshots", snapshots, about)
    parser.add_argument("--verify", action="store_true", help="read all chunks now, repair damaged ones from parity")
    add_job_options(parser)


def snapshots(chosen: argparse.Namespace) -> int:
    """Print the snapshots, or what a check of them found; 1: something is lost, or could not be checked."""
    folder = JobFolder.find(chosen.job)
    answer = _verify(folder) if chosen.verify else ask_or_replay(folder, "snapshots")
    if chosen.json:
        print_json(answer)
    elif chosen.verify:
        _show_check(answer)
    else:
        _show(answer)
    return 0 if not chosen.verify or answer["sound"] else 1


def _verify(folder: JobFolder) -> Any:
    from ftrain_launcher import query

    if folder.result() is not None:
        raise UsageError(f"job {folder.record().name!r} has ended: there is nothing in memory to verify")
    return query.ask(folder, "/api/verify", {}, _VERIFY_SECONDS)


def _show(answer: dict[str, Any]) -> None:
    rows = [
        [
            snapshot["version"],
            snapshot["level"],
            snapshot["slot"],
            node["node"],
            _bytes(node["data_bytes"], node["data"]),
            _bytes(node["parity_bytes"], node["parity"]),
            _age(node["age_seconds"]),
        ]
        for snapshot in answer["snapshots"]
        for node in snapshot["nodes"]
    ]
    print_table(["version", "level", "slot", "node", "own bytes", "parity bytes", "age"], rows)


def _show_check(answer: dict[str, Any]) -> None:
    rows = [
        [node["node"], lane["version"], lane["lane"], lane["checked"], lane["damaged"], lane["repaired"]]
        for node in answer["nodes"]
        for lane in node["lanes"]
    ]
    print_table(["node", "version", "lane", "checked", "damaged", "repaired"], rows)
    for node in answer["nodes"]:
        if node["failure"] is not None:
            print_line(f"{node['node']} was not checked: {node['failure']}")
        for lane in node["lanes"]:
            for place in lane["damage"]:
                print_line(f"{node['node']}, version {lane['version']}, lane {lane['lane']}: damaged {_place(place)}")
    print_line(_verdict(answer))


def _place(damage: dict[str, Any]) -> str:
    first, last = damage["first_stripe"], damage["stop_stripe"] - 1
    stripes = f"stripe {last}" if first == last else f"stripes {first} to {last}"
    if damage["kind"] == "data" and first == last:
        return f"data chunk {damage['chunk']} ({stripes} of rotation {damage['rotation']})"
    return f"{damage['kind']} in {stripes} of rotation {damage['rotation']}"


def _verdict(answer: dict[str, Any]) -> str:
    checked, damaged, repaired = (sum(n[word] for n in answer["nodes"]) for word in ("checked", "damaged", "repaired"))
    if damaged > repaired:
        return f"{damaged - repaired} of {checked} chunks are lost"
    if not answer["sound"]:
        return "not every node was checked"
    if damaged:
        return f"all {checked} chunks are sound: {damaged} were damaged, and were repaired from parity"
    return f"all {checked} chunks are sound"


def _bytes(count: int, there: bool) -> str:
    return f"{count:,}" if there else "-"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.0f} s"

"""``ftrain status``, ``incidents`` and ``snapshots``: what a job is doing, what happened to it, what it holds."""

from __future__ import annotations

import argparse
from typing import Any

from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.errors import ControllerAway
from ftrain_launcher.jobs import JobFolder


def add_to(commands: Commands) -> None:
    """Add the three commands."""
    for name, command, about in (
        ("status", status, "Show a job's nodes, ranks, pids, steps, snapshot levels and generation."),
        ("incidents", incidents, "Show each fault: kind, suspects, timeline, steps lost."),
        ("snapshots", snapshots, "Show the versions in memory: levels, bytes per node, where the parity lies."),
    ):
        add_job_options(add_command(commands, name, command, about))


def status(chosen: argparse.Namespace) -> int:
    """Print the status."""
    from ftrain_launcher import query

    answer = query.status(JobFolder.find(chosen.job))
    if chosen.json:
        print_json(answer)
        return 0
    levels = answer["snapshots"]
    _print(
        f"job {answer['job']}: {answer['state']}, generation {answer['generation']}, "
        f"{answer['incidents']} incidents; snapshots: sealed {levels['sealed']}, protected {levels['protected']}, "
        f"durable {levels['durable']} (taken {levels['taken']}, skipped {levels['skipped']})"
    )
    rows = []
    for node in answer["nodes"]:
        ranks = node["ranks"] or [{"rank": "-", "pid": "-", "state": "-", "step": "-"}]
        for rank in ranks:
            rows.append(
                [
                    node["name"],
                    node["state"],
                    node["agent_pid"],
                    node["daemon_pid"],
                    rank["rank"],
                    rank["pid"],
                    rank["state"],
                    rank["step"],
                ]
            )
    _table(["node", "state", "agent", "daemon", "rank", "pid", "worker", "step"], rows)
    return 0


def incidents(chosen: argparse.Namespace) -> int:
    """Print the incidents."""
    answer = _ask_or_replay(JobFolder.find(chosen.job), "incidents")
    if chosen.json:
        print_json(answer)
        return 0
    rows = []
    for incident in answer["incidents"]:
        timeline = incident["timeline"]
        phases = [_after(timeline, name) for name in ("decided", "formed", "restored", "first_step")]
        suspects = ", ".join(_suspect(s) for s in incident["suspects"])
        rows.append(
            [incident["number"], incident["kind"], suspects, *phases, incident["steps_lost"], incident["resumed_from"]]
        )
    heads = ["#", "kind", "suspects", "decided", "formed", "restored", "first step", "steps lost", "resumed after step"]
    _table(heads, rows)
    return 0


def snapshots(chosen: argparse.Namespace) -> int:
    """Print the snapshots."""
    answer = _ask_or_replay(JobFolder.find(chosen.job), "snapshots")
    if chosen.json:
        print_json(answer)
        return 0
    rows = []
    for snapshot in answer["snapshots"]:
        for node in snapshot["nodes"]:
            rows.append(
                [
                    snapshot["version"],
                    snapshot["level"],
                    snapshot["slot"],
                    node["node"],
                    _bytes(node["data_bytes"], node["data"]),
                    _bytes(node["parity_bytes"], node["parity"]),
                ]
            )
    _table(["version", "level", "slot", "node", "own bytes", "parity bytes"], rows)
    return 0


def _ask_or_replay(folder: JobFolder, what: str) -> Any:
    """Ask the controller; of a job that has ended, or whose controller is away, replay the journal."""
    from ftrain_launcher import query

    try:
        if folder.result() is None:
            return query.ask(folder, f"/api/{what}")
    except ControllerAway:
        pass
    from ftrain_launcher import views
    from ftrain_launcher.journal import replay

    if not folder.journal.exists():
        raise ControllerAway(f"job {folder.record().name!r} has not begun yet: try again")
    coordinator = replay(folder.journal)
    return views.incidents(coordinator) if what == "incidents" else views.snapshots(coordinator, {})


def _after(timeline: dict[str, float | None], name: str) -> str:
    moment, detected = timeline[name], timeline["detected"]
    return "-" if moment is None or detected is None else f"+{moment - detected:.3f} s"


def _suspect(suspect: dict[str, Any]) -> str:
    return suspect["node"] if suspect["rank"] is None else f"rank {suspect['rank']} ({suspect['node']})"


def _bytes(count: int, there: bool) -> str:
    return f"{count:,}" if there else "-"


def _print(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)


def _table(heads: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(highlight=False, soft_wrap=True).print(table)

"""``ftrain status``, ``incidents`` and ``snapshots``: what a job is doing, what happened to it, what it holds."""

from __future__ import annotations

from typing import Any

from ftrain_launcher import query
from ftrain_launcher.commands.options import Job, Json, print_json
from ftrain_launcher.errors import ControllerAway
from ftrain_launcher.jobs import JobFolder


def status(job: Job = None, json: Json = False) -> None:
    """Show the job's nodes, ranks, pids, steps, snapshot levels and generation."""
    answer = query.status(JobFolder.find(job))
    if json:
        print_json(answer)
        return
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


def incidents(job: Job = None, json: Json = False) -> None:
    """Show each fault: kind, suspects, timeline, steps lost."""
    answer = _ask_or_replay(JobFolder.find(job), "incidents")
    if json:
        print_json(answer)
        return
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


def snapshots(job: Job = None, json: Json = False) -> None:
    """Show the versions in memory: levels, bytes per node, where the parity lies."""
    answer = _ask_or_replay(JobFolder.find(job), "snapshots")
    if json:
        print_json(answer)
        return
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


def _ask_or_replay(folder: JobFolder, what: str) -> Any:
    """Ask the controller; of a job that has ended, or whose controller is away, replay the journal."""
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

"""``ftrain status`` and ``incidents``: what a job is doing, and what happened to it; the story of one incident."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ftrain_launcher.commands.checks import at_least
from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.commands.text import print_line, print_table
from ftrain_launcher.errors import ControllerAway, UsageError
from ftrain_launcher.jobs import JobFolder


def add_to(commands: Commands) -> None:
    """Add both commands."""
    about = "Show a job's nodes, ranks, pids, steps, snapshot levels and generation."
    add_job_options(add_command(commands, "status", status, about))
    about = "Show each fault: kind, suspects, timeline, steps lost; or tell the story of one."
    parser = add_command(commands, "incidents", incidents, about)
    parser.add_argument("number", metavar="NUMBER", type=int, nargs="?", help="tell the story of this one")
    add_job_options(parser)


def status(chosen: argparse.Namespace) -> int:
    """Print the status."""
    from ftrain_launcher import query

    folder = JobFolder.find(chosen.job)
    answer = query.status(folder)
    if chosen.json:
        print_json(answer)
        return 0
    levels, size = answer["snapshots"], size_in_words(answer.get("size"))
    print_line(
        f"job {answer['job']}: {answer['state']}, {f'{size}, ' if size else ''}generation {answer['generation']}, "
        f"{answer['incidents']} incidents; snapshots: sealed {levels['sealed']}, protected {levels['protected']}, "
        f"durable {levels['durable']} (taken {levels['taken']}, skipped {levels['skipped']})"
    )
    if folder.record().config.work.parity:
        print_line(f"last snapshot: {_volume(answer['volume']['last'])}; all: {_volume(answer['volume']['total'])}")
        print_line(_exposure(levels))
    else:
        print_line("without parity: nobody else has what a node holds")
    if (durable := answer.get("durable")) is not None:
        print_line(_durable(durable))
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
                    _share(node["daemon_cpu_share"]),
                    rank["rank"],
                    rank["pid"],
                    rank["state"],
                    rank["step"],
                ]
            )
    print_table(["node", "state", "agent", "daemon", "cpu", "rank", "pid", "worker", "step"], rows)
    return 0


def incidents(chosen: argparse.Namespace) -> int:
    """Print the incidents."""
    if chosen.number is not None:
        at_least("NUMBER", chosen.number, 1)
    folder = JobFolder.find(chosen.job)
    if chosen.number is not None:
        return _story(folder, chosen)
    answer = ask_or_replay(folder, "incidents")
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
    print_table(heads, rows)
    return 0


def _story(folder: JobFolder, chosen: argparse.Namespace) -> int:
    from ftrain_launcher.control.story import tell

    answer = ask_or_replay(folder, "incidents", chosen.number)
    if chosen.json:
        print_json(answer)
        return 0
    for line in tell(answer["incident"]):
        print_line(line)
    return 0


def ask_or_replay(folder: JobFolder, what: str, number: int | None = None) -> Any:
    """Ask the controller; of a job that has ended, or whose controller is away, replay the journal.

    ``number``: of an incident, for its story.

    Raises:
        ControllerAway: neither is possible just now.
        UsageError: there is no such incident.
    """
    from ftrain_launcher import query

    try:
        if folder.result() is None:
            return query.ask(folder, f"/api/{what}" if number is None else f"/api/{what}/{number}")
    except ControllerAway:
        pass
    from ftrain_launcher.control import views
    from ftrain_launcher.control.journal import replay

    if not folder.journal.exists():
        if not folder.is_running():
            raise UsageError(f"job {folder.record().name!r} has ended before it began: nothing is known of it")
        raise ControllerAway(f"job {folder.record().name!r} has not begun yet: try again")
    coordinator = replay(folder.journal)
    if number is not None:
        return views.incident(coordinator, number)
    if what == "incidents":
        return views.incidents(coordinator)
    if what == "nodes":
        return views.nodes(coordinator, time.time())
    return views.snapshots(coordinator, {}, time.time())


def size_in_words(size: dict[str, Any] | None, what: str = "nodes") -> str:
    """Of a job that may grow and shrink, with the reason why it may not; empty: of any other."""
    if size is None or size["min"] == size["max"]:  # jobs that older versions ran did not say it
        return ""
    why = f" ({size['reason']})" if size.get("reason") else ""
    return f"{size['nodes']} of {size['min']}:{size['max']} {what}{why}"


def _volume(volume: dict[str, int]) -> str:
    copied, coded, sent = (f"{volume[f'{word}_bytes'] / 1e6:,.1f}" for word in ("copied", "coded", "sent"))
    return f"{copied} of {volume['captured_bytes'] / 1e6:,.1f} MB copied, {coded} coded, {sent} sent"


def _exposure(levels: dict[str, Any]) -> str:
    """For how long one more lost node than is covered would have been fatal, or have cost a step."""
    if levels["exposed_seconds"]:
        return f"exposed for {levels['exposed_seconds']:.1f} s: one more loss now could be fatal"
    last = levels["exposed_last_seconds"]
    return "not exposed" + (f"; the last time, for {last:.2f} s" if last else " so far")


def _share(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def _after(timeline: dict[str, float | None], name: str) -> str:
    moment, detected = timeline[name], timeline["detected"]
    return "-" if moment is None or detected is None else f"+{moment - detected:.3f} s"


def _durable(durable: dict[str, Any]) -> str:
    newest, writing, failure = durable["newest"], durable["writing"], durable["failure"]
    text = "nothing written yet" if newest is None else f"newest checkpoint after step {newest}"
    text += "" if writing is None else f", writing that of step {writing}"
    text += "" if failure is None else f"; last failure: {failure}"
    return f"durable {durable['url']}: {text}"


def _suspect(suspect: dict[str, Any]) -> str:
    return suspect["node"] if suspect["rank"] is None else f"rank {suspect['rank']} ({suspect['node']})"

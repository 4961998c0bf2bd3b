"""``ftrain nodes``, ``cordon``, ``drain`` and ``uncordon``: which nodes there are, and which are to hold ranks."""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

from ftrain_launcher.commands.checks import not_negative
from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.errors import UsageError

DRAIN_SECONDS = 300.0
_POLL_SECONDS = 0.1
_UNSAFE = "no snapshot of the new size is safe yet"
_PATIENCE_SECONDS = 3.0
"""A node that is asked for, and the end of a step, are waited for without a word."""


def add_to(commands: Commands) -> None:
    """Add the four commands."""
    about = "Show each node: its ranks, what went wrong there within an hour, why it is to be given no ranks."
    add_job_options(add_command(commands, "nodes", nodes, about))
    about = "Give a node no ranks any more; those that it has go to another node at the next fault."
    parser = _add_change(commands, "cordon", cordon, about)
    parser.add_argument("--now", action="store_true", help="move its ranks at once, if another node can take them")
    about = (
        "Cordon a node and move its ranks at the end of a step: no step is lost. Waits until it can be switched off."
    )
    parser = _add_change(commands, "drain", drain, about)
    parser.add_argument(
        "--timeout-seconds",
        type=float,
        default=DRAIN_SECONDS,
        metavar="S",
        help=f"how long to wait for that, {DRAIN_SECONDS:g} by default; the drain goes on after it",
    )
    about = "Let a node hold ranks again, once it has passed its health check."
    parser = add_command(commands, "uncordon", uncordon, about)
    parser.add_argument("node", metavar="NODE", help="its name, or its position")
    parser.add_argument("--force", action="store_true", help="without a health check")
    add_job_options(parser)


def _add_change(commands: Commands, name: str, command: Any, about: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, command, about)
    parser.add_argument("node", metavar="NODE", help="its name, or its position")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why: 'ftrain nodes' shows it")
    add_job_options(parser)
    return parser


def nodes(chosen: argparse.Namespace) -> int:
    """Print the nodes."""
    from ftrain_launcher.commands.show import ask_or_replay, size_in_words
    from ftrain_launcher.commands.text import print_line, print_table
    from ftrain_launcher.jobs import JobFolder

    answer = ask_or_replay(JobFolder.find(chosen.job), "nodes")
    if chosen.json:
        print_json(answer)
        return 0
    now = time.time()
    rows = [
        [
            node["name"],
            node["state"],
            node["position"],
            _ranks(node["ranks"]),
            node["hostname"],
            len(node["failures"]) or None,
            _cordon(node["cordon"], now),
            _health(node["health"], now),
        ]
        for node in answer["nodes"]
    ]
    print_table(["node", "state", "position", "ranks", "host", "failures/h", "cordoned", "health"], rows)
    if size := size_in_words(answer["size"], "nodes hold ranks"):
        print_line(size)
    count, most = answer["isolations"]["last_hour"], answer["isolations"]["max"]
    print_line(f"taken out by the policy within an hour: {count} of at most {most}")
    return 0


def cordon(chosen: argparse.Namespace) -> int:
    """Ask for a node to be given no ranks."""
    return _change(chosen, "cordon", {"reason": chosen.reason, "leave": "now" if chosen.now else "at_next_fault"})


def drain(chosen: argparse.Namespace) -> int:
    """Ask for its ranks to be moved, and wait until they are: then exit code 0, else 1."""
    from ftrain_launcher.errors import ControllerAway
    from ftrain_launcher.jobs import JobFolder
    from ftrain_launcher.query import ask

    folder = JobFolder.find(chosen.job)
    deadline = time.monotonic() + not_negative("--timeout-seconds", chosen.timeout_seconds)
    node = ask(folder, "/api/cordon", {"node": chosen.node, "reason": chosen.reason, "leave": "soon"})
    patience = _Patience()
    while not _is_free(node) and (node["cordon"]["leaves"] or node["is_read"]) and time.monotonic() < deadline:
        ranks = "still holds its ranks", node["cordon"]["hindrance"]
        what, why = ("holds bytes", _UNSAFE) if node["is_read"] else ranks
        if (news := patience.news(why, time.monotonic())) is not None:
            sys.stderr.write(f"{node['name']}: {what}: {news}\n")
        time.sleep(_POLL_SECONDS)  # the API answers, and tells no news
        try:
            answer = ask(folder, "/api/nodes")
        except ControllerAway:
            if folder.result() is not None:
                raise
            continue
        node = next(n for n in answer["nodes"] if n["name"] == node["name"])
        if node["cordon"] is None:
            raise UsageError(f"{node['name']} is not drained: it was let in again meanwhile")
    if chosen.json:
        print_json(node)
    else:
        sys.stdout.write(f"{node['name']}: {_drained(node)}\n")
    return 0 if _is_free(node) else 1


class _Patience:
    """Tells what hinders something, once it has for a while: a node that is asked for takes its time to come."""

    def __init__(self) -> None:
        self._what, self._since = "", 0.0

    def news(self, hindrance: str, now: float) -> str | None:
        """What it is, if that is to be told now."""
        if hindrance != self._what:
            self._what, self._since = hindrance, now
        if not hindrance or now < self._since + _PATIENCE_SECONDS:
            return None
        self._since = math.inf
        return hindrance


def _is_free(node: dict[str, Any]) -> bool:
    """Neither its ranks nor, after a re-shard, what it holds of the world before is needed any more."""
    return node["state"] in ("lost", "released") or (node["position"] is None and not node["is_read"])


def _drained(node: dict[str, Any]) -> str:
    if _is_free(node):
        return "holds no ranks; it may be switched off"
    if node["is_read"]:
        return f"holds bytes of the state: {_UNSAFE} ('ftrain nodes --json' shows it)"
    if node["cordon"]["leaves"]:
        why = node["cordon"]["hindrance"] or "no step has ended after which they can move"
        return f"still holds its ranks: {why}; the drain goes on ('ftrain nodes' shows it)"
    return "keeps its ranks until the next fault: without it too little of the state would be left"


def uncordon(chosen: argparse.Namespace) -> int:
    """Ask for a node to be let in again."""
    return _change(chosen, "uncordon", {"force": chosen.force})


def _change(chosen: argparse.Namespace, what: str, body: dict[str, Any]) -> int:
    from ftrain_launcher.jobs import JobFolder
    from ftrain_launcher.query import ask

    node = ask(JobFolder.find(chosen.job), f"/api/{what}", {"node": chosen.node, **body})
    if chosen.json:
        print_json(node)
    else:
        sys.stdout.write(f"{node['name']}: {_outcome(node)}\n")
    return 0


def _outcome(node: dict[str, Any]) -> str:
    cordon = node["cordon"]
    if cordon is None:
        return "may hold ranks"
    if cordon["returning"]:
        return "is checked; it may hold ranks again if it passes ('ftrain nodes' shows it)"
    if node["position"] is None:
        return "is cordoned"
    when = "as soon as another node can take them" if cordon["leaves"] else "at the next fault"
    return f"is cordoned; its ranks move {when}"


def _ranks(ranks: list[int]) -> str | None:
    if len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks)) or None


def _cordon(cordon: dict[str, Any] | None, now: float) -> str | None:
    if cordon is None:
        return None
    since = _ago(cordon["since"], now)
    why = f": {cordon['reason']}" if cordon["reason"] else ""
    checked = " (asked for again: its health is being checked)" if cordon["returning"] else ""
    return f"{'quarantined ' if cordon['quarantined'] else ''}{since}{why}{checked}"


def _health(health: dict[str, Any] | None, now: float) -> str | None:
    if health is None:
        return None
    why = f": {health['reason']}" if health["reason"] else ""
    state = "bad" if not health["ok"] else "suspicious" if health["reason"] else "ok"
    return f"{state} {_ago(health['time'], now)}{why}"


def _ago(then: float, now: float) -> str:
    minutes = int(max(0.0, now - then) // 60)
    return f"{minutes // 60} h {minutes % 60} min ago" if minutes >= 60 else f"{minutes} min ago"

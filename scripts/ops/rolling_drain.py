#!/usr/bin/env python3
"""Free one node after the other for maintenance, while the job trains on.

Each node is drained (its ranks go to a spare at the end of a step: no step is lost), the command is run, and the node
is let in again once it has passed its health check; then comes the next. Whatever fails ends it there: the node stays
cordoned, the others are as they were.

    scripts/ops/rolling_drain.py --command 'ssh "$HOST" sudo apt-get -y upgrade'
"""

from __future__ import annotations

from typing import Any

from operators import Failed, Job, add_times, main, parser, run_for, say

DRAIN_SECONDS, RETURN_SECONDS, COMMAND_SECONDS = 600.0, 300.0, 3600.0


def run() -> None:
    made = parser("Free one node after the other for maintenance, while the job trains on.")
    made.add_argument("nodes", metavar="NODE", nargs="*", help="names, positions or hosts; default: all")
    made.add_argument("--command", metavar="CMD", help="what is done with a free node; NODE and HOST tell which it is")
    made.add_argument("--no-check", action="store_true", help="let a node in again without a health check")
    made.add_argument("--reason", default="maintenance", metavar="TEXT", help="'ftrain nodes' shows it")
    add_times(
        made,
        ("--drain-seconds", DRAIN_SECONDS, "how long a node's ranks may take to move"),
        ("--command-seconds", COMMAND_SECONDS, "how long the command may take"),
        ("--return-seconds", RETURN_SECONDS, "how long a node may take to be let in again"),
    )
    chosen = made.parse_args()
    job = Job(chosen.job)
    nodes = [job.node(word) for word in chosen.nodes] or [n for n in job.nodes() if n["cordon"] is None]
    if not nodes:
        raise Failed("every node is cordoned already")
    for number, node in enumerate(nodes, 1):
        say(f"{node['name']} ({node['hostname']}), {number} of {len(nodes)}: draining")
        job.drain(node, chosen.reason, chosen.drain_seconds)
        if chosen.command is not None:
            say(f"{node['name']} is free: {chosen.command}")
            run_for(chosen.command, node, chosen.command_seconds)
        let_in(job, node, chosen.return_seconds, check=not chosen.no_check)
    say(f"{len(nodes)} nodes done")


def let_in(job: Job, node: dict[str, Any], timeout_seconds: float, *, check: bool) -> None:
    """A host that was started anew has come back as another node, and is cordoned like the one that it was."""

    def newest() -> dict[str, Any] | None:
        same = (n for n in job.nodes() if n["name"] == node["name"] or n["hostname"] == node["hostname"])
        return max(same, key=lambda n: (n["name"] == node["name"], n["name"]), default=None)

    def is_back() -> bool:
        found = newest()
        if found is None or found["cordon"] is None:
            return found is not None
        if not found["cordon"]["returning"]:
            if found["health"] is not None and not found["health"]["ok"]:
                raise Failed(f"{found['name']} stays cordoned: {found['health']['reason']}")
            job.ask("uncordon", found["name"], *(() if check else ("--force",)))
        return False

    job.wait(is_back, f"{node['name']} is let in again", timeout_seconds)
    say(f"{node['name']} may hold ranks again")


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""Take a node out of a job for good: its ranks move without a lost step, and another node is waited for.

    scripts/ops/replace_node.py node-3 --command 'ssh "$HOST" sudo systemctl stop ftrain@run7'

Emulated nodes are replaced by new ones by themselves. On hosts, start `ftrain run` on a fresh one before, or meanwhile.
"""

from __future__ import annotations

from operators import Job, add_times, main, parser, run_for, say

DRAIN_SECONDS, COMMAND_SECONDS, REPLACE_SECONDS = 600.0, 300.0, 600.0


def run() -> None:
    made = parser("Take a node out of a job for good, and wait until another is there in its place.")
    made.add_argument("node", metavar="NODE", help="its name, its position, or its host's name")
    made.add_argument("--command", metavar="CMD", help="switches it off, once it is free; it finds NODE and HOST")
    made.add_argument("--reason", default="replaced", metavar="TEXT", help="'ftrain nodes' shows it")
    add_times(
        made,
        ("--drain-seconds", DRAIN_SECONDS, "how long its ranks may take to move"),
        ("--command-seconds", COMMAND_SECONDS, "how long the command may take"),
        ("--replace-seconds", REPLACE_SECONDS, "how long the other node may take to come"),
    )
    chosen = made.parse_args()
    job = Job(chosen.job)
    node, size = job.node(chosen.node), job.ask("nodes")["size"]
    wanted = min(usable(job), size["max"] + size["spares"])  # A spare more than were asked for is not replaced.
    say(f"{node['name']} ({node['hostname']}): draining")
    job.drain(node, chosen.reason, chosen.drain_seconds)
    if chosen.command is not None:
        say(f"{node['name']} is free: {chosen.command}")
        run_for(chosen.command, node, chosen.command_seconds)
    job.wait(lambda: usable(job) >= wanted, f"{wanted} nodes without {node['name']}", chosen.replace_seconds)
    holder = [n["name"] for n in job.nodes() if n["position"] == node["position"] is not None]
    say(f"{node['name']} is replaced" + (f"; {holder[0]} has its ranks" if holder else ""))


def usable(job: Job) -> int:
    """How many nodes hold ranks, or may be given some."""
    return sum(node["cordon"] is None and node["state"] in ("active", "idle", "away") for node in job.nodes())


if __name__ == "__main__":
    main(run)

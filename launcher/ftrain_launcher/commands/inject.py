"""``ftrain inject``: break something on purpose, to see the job survive it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from ftrain_launcher.commands.options import Job, Json, print_json
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder
from ftrain_launcher.query import ask


class Fault(StrEnum):
    """What can be broken."""

    kill_worker = "kill-worker"
    kill_node = "kill-node"
    kill_agent = "kill-agent"
    kill_daemon = "kill-daemon"


def inject(
    fault: Annotated[Fault, typer.Argument(help="What to break.")],
    rank: Annotated[int | None, typer.Option(help="For kill-worker: which rank.")] = None,
    node: Annotated[str | None, typer.Option(help="For the others: a node's name, or its position.")] = None,
    job: Job = None,
    json: Json = False,
) -> None:
    """Break something, with a real SIGKILL: a worker, an agent, a daemon, or a node with its memory."""
    body: dict[str, Any] = {"kind": fault.value}
    if fault is Fault.kill_worker:
        if rank is None:
            raise UsageError("kill-worker needs --rank")
        body["rank"] = rank
    else:
        if node is None:
            raise UsageError(f"{fault.value} needs --node")
        body["node"] = node
    done = ask(JobFolder.find(job), "/api/inject", body)
    if json:
        print_json(done)
    else:
        where = done["node"] if rank is None else f"rank {rank} on {done['node']}"
        typer.echo(f"{fault.value}: {where}")

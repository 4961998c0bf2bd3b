"""``ftrain controller --resume JOB``: bring a job's controller back."""

from __future__ import annotations

from typing import Annotated

import typer

from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder


def controller(
    resume: Annotated[str, typer.Option(metavar="JOB", help="Name of the job whose journal is replayed.")],
) -> None:
    """Start a job's controller again from its journal; training does not stop meanwhile.

    The launcher does this by itself when its controller dies; the command is for when it was told not to.
    """
    import asyncio

    from ftrain_launcher.controller import Controller

    folder = JobFolder.find(resume)
    if folder.result() is not None:
        raise UsageError(f"job {resume!r} has ended: there is nothing to resume")
    endpoint = folder.endpoint()
    if endpoint is not None and _answers(folder):
        raise UsageError(f"the controller of job {resume!r} is running (pid {endpoint.pid})")

    async def serve() -> int:
        return await Controller(folder).run()

    raise typer.Exit(asyncio.run(serve()))


def _answers(folder: JobFolder) -> bool:
    from ftrain_launcher.errors import ControllerAway
    from ftrain_launcher.query import ask

    try:
        ask(folder, "/api/status", wait_seconds=0.3)
    except ControllerAway:
        return False
    return True

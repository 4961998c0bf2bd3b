"""How the process of a worker is started: its program, environment and output, and the processors it may use."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ftrain_launcher.errors import NotBound, SpawnFailed
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node.worker_output import WorkerOutput
from ftrain_launcher.processes import numa
from ftrain_launcher.processes.environment import interface_of, worker_environment
from ftrain_launcher.processes.spawning import Spawn
from ftrain_launcher.to_agent import Form

_LOCAL_RANK = re.compile(r"\$(local_rank\b|\{local_rank\})")
"""In a script's arguments, as torchrun has it."""


def worker_spawn(job: JobRecord, node: str, output: WorkerOutput, form: Form, lane: int) -> Spawn:
    """The worker of this lane in this generation. Raises SpawnFailed: it cannot be bound as the user wants."""
    work, rank = form.work, form.rank_of(lane)
    out, err = (str(path) for path in output.files(form.generation, rank))
    return Spawn(
        id=f"g{form.generation}-rank{rank}",
        argv=tuple(_LOCAL_RANK.sub(str(lane), word) for word in work.argv),
        kind=work.kind,
        env=worker_environment(
            form,
            lane,
            node=node,
            node_folder=Path(job.arena_folder) / node,
            interface=interface_of(job.host),
            error_file=output.error_file(form.generation, rank),
        ),
        cwd=job.config.work.folder,
        stdout_path=out,
        stderr_path=err,
        processors=_processors(form, lane),
        start=work.start,
    )


def _processors(form: Form, lane: int) -> tuple[int, ...]:
    """Those near its GPU, if it is to be bound to these."""
    if not (mode := form.work.numa_binding):
        return ()
    try:
        return numa.near(numa.look({**os.environ, **form.work.environment}), mode, lane)
    except NotBound as error:
        raise SpawnFailed(f"g{form.generation}-lane{lane}", f"--numa-binding {mode}: {error}") from error

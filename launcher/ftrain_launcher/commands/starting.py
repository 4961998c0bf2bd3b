"""The start of this machine's part of a job: where the controller runs, and on a host that joins."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.commands import checks, devices, files, needs, output, own_address, tls, torchrun
from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes import zygote_start

if TYPE_CHECKING:
    from ftrain_launcher.engine_messages import Offer
    from ftrain_launcher.job.events import JobConfig
    from ftrain_launcher.jobs import JobFolder, JobRecord, Result


def lead(
    chosen: argparse.Namespace,
    config: JobConfig,
    offer: Offer,
    place: tuple[str, int],
    shared_secret: bytes | None,
    domains: tuple[str, ...],
) -> int:
    """The controller runs here: make the job's folder, run the job to its end."""
    import msgspec

    from ftrain_launcher.jobs import JobFolder, JobRecord, job_secret

    reached = own_address.outward() if place[0] == own_address.EVERYWHERE else place[0]
    work = config.work
    if chosen.engine != "none":
        devices.check_binding(work.numa_binding, work.nproc_per_node)
    arena, home = files.arena(chosen.arena_dir, work.job), _state_folder()
    logs = output.log_folder(chosen) or home / "jobs" / work.job / "logs"
    work = msgspec.structs.replace(work, log_folder=str(logs))
    salt = secrets.token_hex(16)
    record = JobRecord(
        name=work.job,
        created=time.time(),
        launcher_pid=os.getpid(),
        hostname=socket.gethostname(),
        arena_folder=str(arena),
        config=msgspec.structs.replace(config, work=work),
        host=(reached if config.hosts else None) or "127.0.0.1",
        controller_grace_seconds=chosen.controller_grace_seconds,
        root_zygote=str(arena / "zygote.sock") if work.zygote and not config.hosts else "",
        controller_host=place[0],
        controller_port=place[1],
        salt=salt,
        open=config.hosts and shared_secret is None,
        failure_domains=domains,
        tls=tls.files(chosen),
        candidate=0 if config.candidates else None,
    )
    folder = JobFolder.create(record, None if shared_secret is None else job_secret(shared_secret, salt))
    if config.candidates:
        from ftrain_launcher import leadership
        from ftrain_launcher.job.fencing import FIRST_TERM

        leadership.write(folder, leadership.Leadership(FIRST_TERM, leads=True))
    _announce(chosen, record, f"{reached}:{place[1]}")
    return _run(chosen, folder, record, None if chosen.engine == "none" else offer)


def _announce(chosen: argparse.Namespace, record: JobRecord, endpoint: str) -> None:
    """What job begins, where it is seen, and what of it is less than the user may think."""
    from ftrain_launcher.terminal import announce

    config, work = record.config, record.config.work
    shape = f"{config.size} nodes x {work.nproc_per_node} workers, {config.spares} spares, parity {work.parity}"
    announce(f"job {work.job}: {shape}; logs in {work.log_folder}")
    needs.warn(chosen, config.nodes)
    if chosen.parity is not None and chosen.parity >= config.least:
        announce(f"warning: --parity {chosen.parity} needs {chosen.parity + 1} nodes: with fewer it is less")
    if config.hosts:
        announce(f"the controller listens at {endpoint}; the other hosts join it there")
    if record.open:
        announce("warning: no --secret-file: whoever reaches that port can join this job, and learns its secret")


def join(
    chosen: argparse.Namespace,
    offer: Offer,
    places: tuple[tuple[str, int], ...],
    shared_secret: bytes | None,
    domains: tuple[str, ...],
    own: tuple[int, str, int] | None = None,
) -> int:
    """The controller runs on another host: learn the job from it, run this host's part of it.

    ``own``: the number of the candidate that this host is, and where it listens.
    """
    import msgspec

    from ftrain_launcher.jobs import Endpoint, JobFolder
    from ftrain_launcher.joining import ask_to_join
    from ftrain_launcher.terminal import announce

    tls_files = tls.files(chosen)
    endpoints = [Endpoint(*place, None) for place in places]
    joined = ask_to_join(endpoints, offer, shared_secret, chosen.join_timeout_seconds)
    theirs, place = joined.record, joined.endpoint
    checks.same_candidates(theirs.config.candidates, places)
    tls.check_same(theirs.tls, tls_files)
    checks.codec(theirs.config.work.codec)
    devices.check_binding(theirs.config.work.numa_binding, theirs.config.work.nproc_per_node)
    arena = files.arena(chosen.arena_dir, f"{theirs.name}-{os.getpid()}")
    _state_folder()
    record = msgspec.structs.replace(
        theirs,
        launcher_pid=os.getpid(),
        hostname=socket.gethostname(),
        arena_folder=str(arena),
        host=joined.address,
        failure_domains=domains,
        tls=tls_files,
        candidate=None if own is None else own[0],
    )
    if own is not None:
        record = msgspec.structs.replace(record, controller_host=own[1], controller_port=own[2])
    folder = JobFolder.place(record)
    logs = output.log_folder(chosen) or (folder.path / "logs").absolute()
    work = msgspec.structs.replace(theirs.config.work, folder=os.getcwd(), log_folder=str(logs))
    record = msgspec.structs.replace(record, config=msgspec.structs.replace(theirs.config, work=work))
    folder.join(record, joined.secret, joined.endpoint)
    announce(f"job {theirs.name}: joined at {place.host}:{place.port} from {joined.address}; logs in {logs}")
    return _run(chosen, folder, record, offer)


def _state_folder() -> Path:
    """Where the job's folder goes. Raises UsageError if it cannot be written."""
    from ftrain_launcher.jobs import state_home

    return files.folder("the state folder", state_home(), "set FTRAIN_HOME to another one", mode=0o700)


def _run(chosen: argparse.Namespace, folder: JobFolder, record: JobRecord, offer: Offer | None) -> int:
    """Run the job of this folder to its end on this machine, say how it ended. ``offer``: of hosts; None: no node.
    Raises UsageError if another job has taken its place in shared memory."""
    from ftrain_launcher.errors import UsageError
    from ftrain_launcher.processes import error_file
    from ftrain_launcher.terminal import announce

    arena = Path(record.arena_folder)
    # The launcher's loop gets what comes until then: on the spot it would end this, or be raised where nothing can be.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        arena.mkdir(mode=0o700)
    except FileExistsError:  # in the moment since it was looked for
        raise UsageError(f"{arena} is in use by another job of this name: choose another --name") from None
    try:
        Path(record.config.work.log_folder).mkdir(parents=True, exist_ok=True)
        result = _launch(chosen, folder, record, offer)
    finally:
        shutil.rmtree(arena, ignore_errors=True)
    if result.exit_code:
        error_file.hand_on(Path(record.config.work.log_folder), record.created, os.environ)
    announce(f"error: {result.message}" if result.exit_code else result.message)
    return result.exit_code


def _launch(chosen: argparse.Namespace, folder: JobFolder, record: JobRecord, offer: Offer | None) -> Result:
    zygote = _start_root_zygote(record)  # what workers wait for are its imports: they begin before the launcher's own
    try:
        from ftrain_launcher import launch
        from ftrain_launcher.engines.host import HostEngine
        from ftrain_launcher.engines.local import LocalEngine
        from ftrain_launcher.engines.none import NoNodes

        hosts = NoNodes if offer is None else partial(HostEngine, offer=offer)
        new_engine = hosts if record.config.hosts else LocalEngine
        return launch.run(folder, new_engine, zygote, chosen.flush_seconds, torchrun.signals(chosen))
    except BaseException:
        if zygote is not None:
            zygote.kill()
        raise


def _start_root_zygote(record: JobRecord) -> zygote_start.Started | None:
    """One process with torch imported, that the zygotes of all emulated nodes are forked from."""
    if not record.root_zygote:
        return None
    config = zygote_start.ZygoteConfig(
        socket_path=Path(record.root_zygote),
        log_path=Path(record.config.work.log_folder) / "zygote-root.log",
        owner_grace_seconds=record.controller_grace_seconds,
    )
    try:
        return zygote_start.start_zygote(config)
    except OSError as error:
        raise ZygoteFailed(f"no process with its log in {config.log_path}: {error.strerror}") from error

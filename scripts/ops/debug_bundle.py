#!/usr/bin/env python3
"""Collect what is needed to look into a job's trouble into one file, without its secrets.

Status, incidents with their stories, nodes, snapshots, journal, the ends of all logs, what `ftrain doctor` says,
versions and the machine; of this host: run it on another one for that one's logs. Whatever cannot be had is noted in
`missing.txt`. Of the job's secret, of what looks like a password, token or key, and of credentials in URLs only the
place is left; look through it yourself before you send it to others all the same.

    scripts/ops/debug_bundle.py --out run7.tar.gz
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from operators import EXIT_USAGE, Failed, Job, ask, main, parser, say

from ftrain_launcher.jobs import JobFolder

LOG_BYTES_MAX = 256 * 2**10
"""Of each log the end; so many bytes of it."""
JOURNAL_BYTES_MAX = 16 * 2**20
LOGS_MAX = 500
INCIDENTS_MAX = 50
PACKAGES = ("torch", "numpy", "aiohttp", "msgspec", "fsspec", "ray", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
GONE = "<removed>"
_SECRET_WORD = r"[\w-]*(?:passw(?:or)?d|secret|token|api[_-]?key|access[_-]?key|credential)[\w-]*"
SECRETS = (
    re.compile(
        r"(?i)(" + _SECRET_WORD + r"[\"']?\s*(?:[=:]|[\"'],)\s*[\"']?)([^\s\"',}]+)"
    ),  # name=value, "name": "value"
    re.compile(r"(?i)(--" + _SECRET_WORD + r"\s+)(\S+)"),
    re.compile(r"()(?<=://)([^/\s@\"']+:[^/\s@\"']+)(?=@)"),
    re.compile(r"(?i)(bearer\s+)([\w.~+/=-]{8,})"),
    re.compile(r"()\b((?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{20,}|hf_\w{20,}|sk-[\w-]{20,})"),
)


def run() -> None:
    made = parser("Collect status, incidents, journal, ends of logs and versions of a job into one file.")
    made.add_argument("--out", type=Path, metavar="FILE", help="where to; default: ftrain-JOB-TIME.tar.gz here")
    chosen = made.parse_args()
    job = Job(chosen.job)
    out = chosen.out or Path(f"ftrain-{job.name}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    folder = JobFolder.find(job.name)
    known = secrets_of(folder)
    missing: list[str] = []
    try:
        with tarfile.open(temporary, "x:gz") as bundle:
            count = 0
            for name, text in (*answers(job, missing), *files(folder, missing), *machine()):
                add(bundle, f"{job.name}/{name}", redact(text, known))
                count += 1
            add(bundle, f"{job.name}/missing.txt", redact("\n".join(missing) + "\n", known))
        os.replace(temporary, out)
    except OSError as error:
        raise Failed(f"--out {out}: {error.strerror or error}", EXIT_USAGE) from error
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{out}: {count} files, {out.stat().st_size / 2**20:.1f} MiB, {len(missing)} things missing")


def answers(job: Job, missing: list[str]) -> Iterator[tuple[str, str]]:
    """What the job's own commands say."""
    incidents: list[int] = []
    for command in ("status", "incidents", "nodes", "snapshots"):
        try:
            answer = job.ask(command)
        except Failed as error:
            missing.append(f"{command}: {error}")
            continue
        if command == "incidents":
            incidents = [entry["number"] for entry in answer["incidents"]][-INCIDENTS_MAX:]
        yield f"{command}.json", json.dumps(answer, indent=2)
    try:
        yield "doctor.json", json.dumps(ask("doctor", may_fail=True), indent=2)
    except Failed as error:
        missing.append(f"doctor: {error}")
    for number in incidents:
        try:
            yield f"incidents/{number}.json", json.dumps(job.ask("incidents", str(number)), indent=2)
        except Failed as error:
            missing.append(f"incident {number}: {error}")


def files(folder: JobFolder, missing: list[str]) -> Iterator[tuple[str, str]]:
    """The journal, and the ends of the logs."""
    logs = Path(folder.record().config.work.log_folder)
    found = [path for path in sorted(logs.rglob("*")) if path.is_file() and path.suffix in (".log", ".err")]
    for path in found[:-LOGS_MAX]:
        missing.append(f"{path.relative_to(logs)}: there are more than {LOGS_MAX} logs")
    places = [(f"logs/{path.relative_to(logs)}", path, LOG_BYTES_MAX) for path in found[-LOGS_MAX:]]
    for name, path, bytes_max in [("journal.jsonl", folder.journal, JOURNAL_BYTES_MAX), *places]:
        try:
            yield name, end_of(path, bytes_max)
        except OSError as error:
            missing.append(f"{name}: {error.strerror or error}")


def end_of(path: Path, bytes_max: int) -> str:
    """Its last lines."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - bytes_max))
        data = file.read(bytes_max)
    if size > bytes_max:
        data = b"(what was before is left out)\n" + data.partition(b"\n")[2]
    return data.decode(errors="replace")


def machine() -> Iterator[tuple[str, str]]:
    """Versions, memory, file systems; of the environment what torch, NCCL, gloo and ftrain read."""
    versions = {"python": sys.version, "system": platform.platform(), "ftrain": metadata.version("ftrain")}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    shown = {
        name: value for name, value in os.environ.items() if name.startswith(("NCCL_", "GLOO_", "TORCH_", "FTRAIN_"))
    }
    yield "versions.json", json.dumps(versions, indent=2)
    yield "environment.json", json.dumps(shown, indent=2, sort_keys=True)
    for name in ("meminfo", "mounts", "cpuinfo"):
        yield f"machine/{name}", end_of_proc(Path("/proc") / name)


def end_of_proc(path: Path) -> str:
    """Files there have no size."""
    try:
        return path.read_text(errors="replace")[:LOG_BYTES_MAX]
    except OSError as error:
        return f"({error.strerror})\n"


def secrets_of(folder: JobFolder) -> tuple[str, ...]:
    """The job's own: its secret, and what operators show the controller."""
    try:
        return (folder.secret.read_text().strip(), folder.token())
    except OSError:
        return ()


def redact(text: str, known: tuple[str, ...]) -> str:
    """Without what is known, or looks like, a secret."""
    for secret in known:
        text = text.replace(secret, GONE)
    for pattern in SECRETS:
        text = pattern.sub(lambda match: match[1] + GONE, text)
    return text


def add(bundle: tarfile.TarFile, name: str, text: str) -> None:
    """One file."""
    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
    bundle.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main(run)

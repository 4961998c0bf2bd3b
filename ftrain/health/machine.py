"""What the machine offers, and how fast it is without torch: cores, files, disk, shared memory, loopback."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path
from threading import Thread

_DISK_BYTES = 16 << 20
_LOOPBACK_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20


def cores() -> float:
    """How many this process may use at once: its affinity, or the quota of its group if that is less."""
    found = float(len(os.sched_getaffinity(0)))
    return min([found, *_quotas()])


def _quotas() -> list[float]:
    """Of all groups that the kernel names for this process and that can be seen here (cgroups(7), both versions)."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            words = _read(Path("/sys/fs/cgroup") / path.lstrip("/") / "cpu.max").split()
        elif "cpu" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/cpu") / path.lstrip("/")
            words = (_read(folder / "cpu.cfs_quota_us") + " " + _read(folder / "cpu.cfs_period_us")).split()
        else:
            continue
        if len(words) == 2 and words[0].isdigit():
            found.append(int(words[0]) / int(words[1]))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def cpu_model() -> str:
    """Its name, as the kernel has it; empty: it has none."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def open_files_max() -> int:
    """How many files and sockets a process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def space(folder: str) -> tuple[int, int]:
    """(size, free) of the file system of a folder, in bytes. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def disk_mb_per_second(folder: str) -> float:
    """How fast bytes reach the disk of a folder (write and fsync). Raises OSError."""
    path = Path(folder) / f".ftrain-health-{os.getpid()}"
    data = os.urandom(_PIECE_BYTES)
    try:
        with path.open("wb", buffering=0) as file:
            began = time.perf_counter()
            for _ in range(_DISK_BYTES // _PIECE_BYTES):
                file.write(data)
            os.fsync(file.fileno())
            return _DISK_BYTES / 1e6 / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def loopback_gb_per_second() -> float:
    """One TCP connection of this machine with itself, per processor second of both ends. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = Thread(target=_send, args=(server.getsockname()[1],), daemon=True)
        sender.start()
        server.settimeout(5.0)
        receiver, _ = server.accept()
    buffer, left = bytearray(_PIECE_BYTES), _LOOPBACK_BYTES
    with receiver:
        receiver.settimeout(5.0)
        began = time.process_time()
        while left > 0 and (received := receiver.recv_into(buffer)):
            left -= received
        seconds = time.process_time() - began
    sender.join(5.0)
    return (_LOOPBACK_BYTES - left) / 1e9 / seconds


def _send(port: int) -> None:
    data = bytes(_PIECE_BYTES)
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as sock:
        for _ in range(_LOOPBACK_BYTES // _PIECE_BYTES):
            sock.sendall(data)

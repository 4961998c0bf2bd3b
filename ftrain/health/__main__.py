"""The loop: a task, its answer."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from ftrain import __version__
from ftrain.health import machine
from ftrain.health.words import Answer, CheckNode, Failed, Hosting, HostPair, JoinPair, NodeFigures, RunPair, Task

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore


class Health:
    """Does one task after the other; between two it may host a pair."""

    def __init__(self) -> None:
        self._store: TCPStore | None = None

    def do(self, task: Task) -> Answer:
        """One task. What goes wrong is an answer, too."""
        try:
            match task:
                case CheckNode():
                    return check(task)
                case HostPair(address):
                    from ftrain.health import pair

                    self._store = pair.host(address)
                    return Hosting(self._store.port)
                case RunPair():
                    return self._run(lambda: self._store, 0)
                case JoinPair(address, port):
                    from ftrain.health import pair

                    return self._run(lambda: pair.join(address, port), 1)
        except (RuntimeError, OSError, ValueError) as error:  # torch's own errors are RuntimeErrors
            return Failed(str(error).splitlines()[0] if str(error) else type(error).__name__)

    def _run(self, store: Callable[[], TCPStore | None], rank: int) -> Answer:
        from ftrain.health import pair

        try:
            found = store()
            return pair.run(found, rank) if found is not None else Failed("there is no pair to run")
        finally:
            self._store = None


def check(task: CheckNode) -> NodeFigures:
    """All of one node. Raises OSError if its shared memory or its loopback cannot be used."""
    import torch

    from ftrain.health import compute

    rate, share, exact, bits = compute.cpu()
    speed, free, failure = None, None, ""
    try:
        speed, free = machine.disk_mb_per_second(task.log_folder), machine.space(task.log_folder)[1]
    except OSError as error:
        failure = f"{task.log_folder}: {error.strerror or error}"
    size, room = machine.space(task.arena_folder)
    return NodeFigures(
        python=platform.python_version(),
        torch=str(torch.__version__),
        ftrain=__version__,
        cpu_model=machine.cpu_model(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cores=machine.cores(),
        open_files_max=machine.open_files_max(),
        matmul_gflops=rate,
        cpu_share=share,
        exact=exact,
        bits=bits,
        memory_gb_per_second=compute.memory_gb_per_second(),
        loopback_gb_per_second=machine.loopback_gb_per_second(),
        disk_mb_per_second=speed,
        disk_free_bytes=free,
        disk_failure=failure,
        arena_bytes=size,
        arena_free_bytes=room,
        gpus=compute.gpus(),
    )


def main() -> int:
    """Serve until stdin ends."""
    health = Health()
    decode = msgspec.json.Decoder(Task).decode
    with suppress(KeyboardInterrupt):
        for line in sys.stdin.buffer:
            sys.stdout.buffer.write(msgspec.json.encode(health.do(decode(line))) + b"\n")
            sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

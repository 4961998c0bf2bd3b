"""A node's health process (`ftrain.health`) as its agent sees it: started when wanted, ended when idle.

The agent's loop never waits for it. Where anything goes wrong with it, the answer says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import msgspec

from ftrain.health.words import NODE_SECONDS_MAX, PAIR_SECONDS_MAX, Answer, CheckNode, Failed, Task

_LINE_BYTES_MAX = 1 << 20
_IMPORT_SECONDS = 30.0
"""For torch, on a machine that is busy."""
_IDLE_SECONDS = _IMPORT_SECONDS + PAIR_SECONDS_MAX
"""So long may the other one of a pair take to begin."""
_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def seconds_max(task: Task) -> float:
    """How long a task may take."""
    return _IMPORT_SECONDS + (NODE_SECONDS_MAX if isinstance(task, CheckNode) else PAIR_SECONDS_MAX)


class HealthProcess:
    """One node's; tasks are done one after the other."""

    def __init__(self, interface: str = "") -> None:
        """``interface``: the one that leads to the other nodes; empty: let torch find it."""
        self._environment = {"OMP_NUM_THREADS": "1", **({"GLOO_SOCKET_IFNAME": interface} if interface else {})}
        self._process: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._lock = asyncio.Lock()

    async def do(self, task: Task) -> Answer:
        """Have it do one thing; bounded by ``seconds_max``."""
        async with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                async with asyncio.timeout(seconds_max(task)):
                    return await self._ask(task)
            except TimeoutError:
                await self.close()
                return Failed(f"it was not done within {seconds_max(task):g} s")
            except (OSError, EOFError, ValueError, msgspec.DecodeError) as error:
                await self.close()
                return Failed(f"the health process ended: {error or type(error).__name__}")
            finally:
                self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)

    async def _ask(self, task: Task) -> Answer:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "ftrain.health"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**self._environment, **os.environ},
                limit=_LINE_BYTES_MAX,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        await process.stdin.drain()
        if not (line := await process.stdout.readline()):
            raise EOFError(f"exit code {await process.wait()}")
        return _answer.decode(line)

    def _end(self) -> None:
        """Nobody has wanted anything for a while: it ends with its stdin."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process = None

    async def close(self) -> None:
        """Kill it, whatever it does."""
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

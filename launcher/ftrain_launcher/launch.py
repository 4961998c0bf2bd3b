"""The launcher: one job, or one host's part of it, from its start to its last process.

It provides nodes through an engine, hands Ctrl-C on as a wish to end, and at the end kills whatever is left. Where the
controller runs, it starts that, too, and starts it again if it dies. It decides nothing about training.

A *notice* (SIGUSR1; SIGTERM where that was asked for) says that this machine will be taken away: where the controller
runs the job is flushed (`flushing.py`), another host gives its ranks away and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from ftrain.comm import library
from ftrain_launcher.engine_line import EngineLine
from ftrain_launcher.engine_messages import (
    FlushJob,
    FromEngine,
    HostLeaves,
    JobEnded,
    NodeGone,
    ReapNode,
    StartNode,
    StopJob,
    ToEngine,
)
from ftrain_launcher.engines.base import Engine
from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.job.policy import EXIT_NOT_FLUSHED
from ftrain_launcher.jobs import JobFolder, Result
from ftrain_launcher.processes import linux, nursery
from ftrain_launcher.processes.pidfds import Child
from ftrain_launcher.processes.spawning import Shutdown
from ftrain_launcher.processes.zygote_line import connect_started
from ftrain_launcher.processes.zygote_start import Started
from ftrain_launcher.terminal import announce

EXIT_CUT_OFF = 6
"""The controller was not to be reached any more."""
NOTICE_SECONDS = 60.0
"""After SIGUSR1, where nobody said how long there is."""
_CONTROLLER_RESTARTS_MAX = 20
_HOUSEKEEPING_SECONDS = 0.5
_ENDING_SECONDS_MAX = 30.0
"""Besides what workers are given."""
_LEAVING_SECONDS = 1.0
"""For the controller to hear that this host leaves."""
_CONTROLLER_END_SECONDS = 3.0
"""How long the controller may take to end after it has told of the job's end."""

NewEngine = Callable[[JobFolder, Callable[[FromEngine], None]], Engine]
"""Makes the engine, given the job's folder and what takes its words to the controller."""


class Launcher:
    """Runs this machine's part of a job; `run` returns how the job ended."""

    def __init__(
        self,
        folder: JobFolder,
        new_engine: NewEngine,
        root_zygote: Started | None,
        flush_seconds: float | None = None,
        signals: tuple[int, ...] = (),
    ) -> None:
        """``root_zygote``: what the zygotes of emulated nodes are forked from, if there is one; it ends with this.

        ``flush_seconds``: SIGTERM is a notice, so long ahead; None: it ends the job. ``signals``: so do these.
        """
        self.folder = folder
        self.record = folder.record()
        self._arena = Path(self.record.arena_folder)
        self.engine = new_engine(folder, self._tell)
        self._line = EngineLine(folder, self.engine.hello, self._obey)
        self._ended: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._root_zygote = root_zygote
        self._interrupts = 0
        self._flush_seconds, self._signals = flush_seconds, signals
        self._noticed = False
        self._controller: Child | None = None
        self._own_pids: set[int] = set()
        """Children that somebody here waits for."""

    @property
    def leads(self) -> bool:
        """The controller runs here, and this launcher's end is the job's."""
        return self.folder.has_controller()

    async def run(self) -> Result:
        """Run the job; nothing of it is left on this machine when this returns."""
        linux.adopt_orphans()
        self._handle_signals()
        work = [self._keep_root_zygote(), self._keep_line(), self._keep_house()]
        work += [self._keep_controller()] if self.leads or self.record.candidate is not None else []
        tasks = [asyncio.create_task(w) for w in work]
        try:
            return await self._ended
        finally:
            if self._controller is not None:
                if not self.leads:  # It stands by, and does not hear of the end.
                    self._controller.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._controller.wait(), _CONTROLLER_END_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.engine.close()
            signal.pthread_sigmask(
                signal.SIG_BLOCK, signal.valid_signals()
            )  # The loop's end takes their handlers away.

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # nohup
                loop.add_signal_handler(number, self._interrupt, number)
        for number in (signal.SIGUSR1, *((signal.SIGTERM,) if self._flush_seconds is not None else ())):
            loop.add_signal_handler(number, self._notice, number)
        for more in self._signals:
            loop.add_signal_handler(more, self._interrupt, more)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # `commands/starting.py` has blocked them.

    def _tell(self, message: FromEngine) -> None:
        self._line.put(message)

    def _interrupt(self, number: int) -> None:
        self._interrupts += 1
        name = signal.Signals(number).name
        if self._interrupts > 1:
            self._end(Result(128 + number, f"{name} again: everything was killed"))
            return
        result = Result(128 + number, f"stopped by {name}")
        if self.leads:
            announce(f"{name}: ending the job (once more to kill it)")
            self._tell(StopJob(result.message, result.exit_code, number))
            limit = _ENDING_SECONDS_MAX + self.record.config.shutdown_grace_seconds
            asyncio.get_running_loop().call_later(limit, self._end, result)
        else:
            announce(f"{name}: this host leaves the job, which goes on")
            self._leave(name, result)

    def _leave(self, name: str, result: Result) -> None:
        """This host does not wait until its ranks have moved."""
        for node in self.engine.nodes:
            self._tell(NodeGone(node, f"its host was told to leave ({name})"))
        asyncio.get_running_loop().call_later(_LEAVING_SECONDS, self._end, result)

    def _notice(self, number: int) -> None:
        if self._noticed:
            if number != signal.SIGUSR1:
                self._interrupt(number)
            return
        self._noticed = True
        loop, name = asyncio.get_running_loop(), signal.Signals(number).name
        seconds = NOTICE_SECONDS if self._flush_seconds is None else self._flush_seconds
        late = Result(EXIT_NOT_FLUSHED, f"not flushed: the {seconds:g} s since {name} are over")
        if self.leads:
            self._tell(FlushJob(name, seconds))
            loop.call_later(seconds, self._end, late)
            return
        announce(f"{name}: this host leaves the job once another has its ranks, within {seconds:g} s")
        for node in self.engine.nodes:
            self._tell(HostLeaves(node, f"its host is to be switched off ({name})"))
        late = Result(EXIT_NOT_FLUSHED, f"this host left with its ranks: none could take them within {seconds:g} s")
        loop.call_later(max(0.0, seconds - _LEAVING_SECONDS), self._leave, name, late)

    def _end(self, result: Result) -> None:
        if not self._ended.done():
            self._ended.set_result(result)

    # ---- the controller

    async def _keep_controller(self) -> None:
        arguments = ("--job-folder", str(self.folder.path))
        for _ in range(_CONTROLLER_RESTARTS_MAX):
            pid = nursery.start(self._arena, "ftrain_launcher.control.controller", arguments, (1, 2))
            controller = self._controller = Child(pid)
            self._own_pids.add(controller.pid)
            code = await controller.wait()
            self._own_pids.discard(controller.pid)
            result = self.folder.result()
            if result is not None:
                self._end(result)
                return
            if self._ended.done():
                return
            announce(f"the controller ended with {code}: it is started again; training goes on")
        self._end(Result(1, f"the controller died {_CONTROLLER_RESTARTS_MAX} times"))

    async def _keep_line(self) -> None:
        """Where the controller runs elsewhere, this host's part ends when it is not to be reached any more."""
        candidates = self.record.config.candidates
        if self.leads and not candidates:
            await self._line.serve()
        else:
            wait, grace = self.record.config.host_wait_seconds, self.record.controller_grace_seconds
            # Of several candidates another one may still come to lead.
            refused_max = grace + wait if candidates else min(wait, grace)
            reason = await self._line.serve(silent_seconds_max=max(wait, refused_max), refused_seconds_max=refused_max)
            self._end(Result(EXIT_CUT_OFF, f"{reason}: this host's part of the job has ended"))

    def _obey(self, message: ToEngine) -> None:
        match message:
            case StartNode(node):
                self.engine.start(node)
            case ReapNode() if self._noticed and not self.leads:
                self._end(Result(0, "this host has left the job: it holds no ranks any more"))
            case ReapNode(node):
                self.engine.reap(node)
            case JobEnded(exit_code, text):
                self._end(Result(exit_code, text))

    # ---- processes

    async def _keep_root_zygote(self) -> None:
        if self._root_zygote is None:
            return
        if library.needs_building():
            announce("the recorder is built first, which takes about 10 s, once on this machine (docs/recorder.md)")
        try:
            line = await connect_started(self._root_zygote)
        except ZygoteFailed as error:
            self._end(Result(1, str(error)))
            return
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            line.send(Shutdown(0.0))
            await line.close()

    async def _keep_house(self) -> None:
        """Bury processes whose parent died before them, as their subreaper; know what belongs to which node."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            self.engine.remember()
            for pid in _zombie_children():
                if pid not in self._own_pids and pid not in self.engine.pids:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)


def _zombie_children() -> list[int]:
    """Children of this process that have ended and that nobody has waited for."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for word in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{word}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    found.append(int(word))
    return found


def run(
    folder: JobFolder,
    new_engine: NewEngine,
    root_zygote: Started | None = None,
    flush_seconds: float | None = None,
    signals: tuple[int, ...] = (),
) -> Result:
    """Run this machine's part of the job of this folder to its end. The last three: as `Launcher` has them."""

    async def main() -> Result:
        return await Launcher(folder, new_engine, root_zygote, flush_seconds, signals).run()

    with nursery.opened(Path(folder.record().arena_folder)):
        result = asyncio.run(main())
    if folder.result() is None:
        folder.write_result(result)
    return result

"""One node's workers, store and daemon, and what is done with them on the controller's word.

A node is always in one of these states towards the job: it has *stopped* for generation g (no older worker
runs), or it has *formed* g (its workers of g run). `Stop` and `Form` move it on; what is older than where it
stands is ignored (fencing). Everything that the controller must hear goes through ``tell``; what it said of the
present generation is kept, so that it can be said again to a controller that was away.

What each of its parts does is theirs (daemon, workers, store, writers, halts). That there is much left here is since
every word of the controller's is judged by the same few numbers: what was stopped, what is formed, who is obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ftrain import link
from ftrain_launcher.background import Background
from ftrain_launcher.errors import SpawnFailed, ZygoteFailed
from ftrain_launcher.from_agent import DurableSearch, FromAgent, Heartbeat, Join, Stopped, Trouble
from ftrain_launcher.job.causes import FOLDER_GONE
from ftrain_launcher.job.events import Detect
from ftrain_launcher.jobs import JobFolder
from ftrain_launcher.node.answering import Answering
from ftrain_launcher.node.checking import DamageWatch
from ftrain_launcher.node.daemons import DaemonFailed, DaemonKeeper
from ftrain_launcher.node.durable_search import search
from ftrain_launcher.node.durable_writers import DurableWriters
from ftrain_launcher.node.halt import NodeHalt
from ftrain_launcher.node.links import LinkServer
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.node.state import NodeFile, NodeRecord, kill_node
from ftrain_launcher.node.store_host import StoreHost
from ftrain_launcher.processes.spawning import PRELOAD, Exited
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_line import wait_for_root
from ftrain_launcher.processes.zygote_start import ZygoteConfig
from ftrain_launcher.rings.watch import CommWatch
from ftrain_launcher.to_agent import Form, GoOn, HaltAfter, Hold, Inject, PinDurable, Stop, Unpin, WriteDurable
from ftrain_snapshot.inventory import Inventory

_PROTECTED_POLL_SECONDS = 0.02
_logger = logging.getLogger(__name__)


class NodeRunner:
    """Runs one node; the agent's connection to the controller feeds it and carries what it tells."""

    def __init__(
        self,
        folder: JobFolder,
        node: str,
        failure_domain: str,
        tell: Callable[[FromAgent], None],
        on_lost: Callable[[], None],
        errors_fd: int,
    ) -> None:
        self.job = folder.record()
        self.node = node
        self._failure_domain = failure_domain
        self.node_folder = Path(self.job.arena_folder) / node
        self._tell_controller = tell
        self._errors_fd = errors_fd
        self._on_lost = on_lost
        """Called when the node's memory is gone: there is no node any more."""
        self._secret = folder.secret
        self._file = NodeFile(self.node_folder)
        self._said: dict[tuple[object, ...], FromAgent] = {}
        self._damage = DamageWatch(node)
        self._stopped = 0
        self._staying = 0
        """Workers that wait for their place in the generation that is being formed."""
        self.term = 0
        """The newest controller's that was promised obedience; 0: there is but one candidate."""
        self._form: Form | None = None
        self.accepted: Form | None = None
        """The newest generation whose ranks it took, also if they are stopped by now."""
        self._all_started = False
        self._inventory: Inventory | None = None
        self._background = Background()
        self._closing = False

    @property
    def generation(self) -> int:
        """The generation whose workers run here; 0: none."""
        return self._form.generation if self._form else 0

    # ---- life

    async def start(self) -> None:
        """Bring the node up, or re-adopt what an agent before this one left running."""
        self.node_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs = Path(self.job.config.work.log_folder)
        self._links = LinkServer(self.node_folder, self._hear_worker)
        self._daemon = DaemonKeeper(self.job, self.node, self.node_folder, self._secret, self._daemon_died)
        zygote = ZygoteConfig(
            socket_path=self.node_folder / "zygote.sock",
            log_path=logs / f"zygote-{self.node}.log",
            root_socket=Path(self.job.root_zygote) if self.job.root_zygote else None,
            preload=PRELOAD if self.job.config.work.zygote else "",
            owner_grace_seconds=self.job.owner_grace_seconds,
        )
        self._host = WorkerHost(zygote, self._exited)
        self._store = StoreHost(self.job, self.node, self.node_folder, self._host)
        self._workers = NodeWorkers(self.job, self.node, self._host, self._links, self._tell, self._errors_fd)
        self._writers = DurableWriters(self.job, self.node, self._host, self._tell)
        self._comm = CommWatch(self.node, self.node_folder, self._workers, self._tell_controller)
        self.answering = Answering(self.job, self.node, self.node_folder, self._workers, self._tell_controller)
        before = self._file.read()
        if before is not None:
            self.term, self.accepted = before.term, before.accepted
        await self._links.start()
        await asyncio.gather(self._start_daemon(before), self._adopt_workers(before))
        self._workers.open()
        self._halts = NodeHalt(self.node, self.node_folder)
        self._write_down()
        self._prepare()
        if self.job.config.detect is not Detect.OFF:
            self._background.begin(self._comm.run())

    async def _start_daemon(self, before: NodeRecord | None) -> None:
        if before is not None and before.daemon_pid is not None:
            if await self._daemon.adopt(before.daemon_pid, before.daemon_port):
                return
            self._daemon.port = before.daemon_port
        await self._daemon.start()
        if before is not None and before.form is not None:
            await self._daemon.configure(before.form, resumed=True)

    async def _adopt_workers(self, before: NodeRecord | None) -> None:
        if before is not None and before.form is not None:
            self._stopped, self._form, self._store.id = before.stopped, before.form, before.store_id
            self._all_started = True
            self._workers.adopt(before.form.generation, before.workers)
        if self.job.root_zygote:
            await wait_for_root(Path(self.job.root_zygote))
        await self._host.start()
        await asyncio.sleep(0)  # what the zygote told while it was being asked comes first
        self._workers.bury_missing()
        self._store.clear_away()

    async def close(self, grace_seconds: float, number: int) -> None:
        """End the node: workers, which signal ``number`` asks, zygote, daemon, and all its memory."""
        self._closing = True
        await self._background.close()
        await self.answering.close()
        self._workers.dismiss()
        with contextlib.suppress(ZygoteFailed):
            await self._host.shutdown(grace_seconds, number)
        await self._daemon.stop(grace_seconds=2.0)
        await self._links.close()
        self._workers.close()
        self._halts.close()
        shutil.rmtree(self.node_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.node_folder.parent.rmdir()

    # ---- what the controller is told

    def _tell(self, message: FromAgent, key: tuple[object, ...] = ()) -> None:
        if key:
            self._said[key] = message
        self._tell_controller(message)

    def join(self) -> Join:
        """How the node stands: the first message on every connection."""
        return Join(
            node=self.node,
            host=self.job.host,
            hostname=socket.gethostname(),
            failure_domain=self._failure_domain,
            agent_pid=os.getpid(),
            daemon_pid=self._daemon.pid,
            daemon_port=self._daemon.port,
            generation=self.generation if self._all_started else 0,
            stopped=self._stopped,
            ranks=self._workers.states(),
            term=self.term,
            accepted=self.accepted.generation if self.accepted else 0,
            forming=self._form is not None and not self._all_started,
        )

    def promise(self, term: int) -> None:
        """Obey no controller of an older term from now on."""
        self.term = term
        self._write_down()

    async def pause(self) -> None:
        """Nobody leads this node: its workers end, and what they left in memory stays."""
        self._comm.tell_now()
        await self._workers.stop()
        self._comm.forget()
        self._halts.clear()
        self._write_down()

    def said(self) -> list[FromAgent]:
        """All that was told of the present generation, for a controller that may not have heard it."""
        return list(self._said.values())

    async def heartbeat(self, *, with_inventory: bool) -> Heartbeat:
        """How far workers and daemon are."""
        if (FOLDER_GONE,) not in self._said and not self.node_folder.exists():
            self._tell(Trouble(self.node, self.generation, FOLDER_GONE, str(self.node_folder)), (FOLDER_GONE,))
        status = None
        with contextlib.suppress(DaemonFailed):
            status = await self._daemon.call(lambda client: client.status())
            if (news := self._damage.news(status)) is not None:
                self._tell(news, ("damage",))
            if with_inventory:
                self._inventory = await self._daemon.call(lambda client: client.inventory())
        return Heartbeat(
            node=self.node,
            generation=self.generation,
            ranks=self._workers.states(),
            daemon_pid=self._daemon.pid,
            daemon=status,
            inventory=self._inventory,
        )

    # ---- what the controller wants

    async def stop(self, message: Stop) -> None:
        """Leave every generation older than this one, and say what the node holds."""
        generation = message.generation
        if generation <= self.generation or generation < self._stopped:
            return
        if not self.node_folder.exists():
            self._on_lost()
            return
        starting: asyncio.Task[int | None] | None = None
        if generation > self._stopped:
            self._stopped = generation
            self._store.retire()
            self._comm.tell_now()  # who waits for whom is of the past in a moment
            spared = self._store.spared(hosts=message.host_store)
            stopping = asyncio.create_task(self._workers.stop(message, spared))  # which first of all chooses what is
            starting = asyncio.create_task(self._host_store(message))  # killed: the new store is not among it
            self._staying = await stopping
            self._comm.forget()
            self._halts.clear()
            self._form, self._all_started = None, False
            self._said.clear()
            self._write_down()
        port, inventory, durable = await asyncio.gather(
            starting or self._host_store(message), self._take_inventory(), self._search_durable(message)
        )
        if inventory is None:
            return  # What is here must not be guessed: the controller waits, and then gives the node up.
        self._tell(
            Stopped(
                node=self.node,
                generation=generation,
                inventory=inventory,
                store_port=port,
                durable=durable,
                staying=self._staying,
            )
        )

    async def _host_store(self, message: Stop) -> int | None:
        """The port of the new generation's store, if it is to be hosted here; None too if it does not start."""
        return await self._store.port(message.generation) if message.host_store else None

    async def _search_durable(self, message: Stop) -> DurableSearch | None:
        """What is on storage, if that is to be known."""
        durable = self.job.config.work.durable
        if durable is None or not message.search_durable:
            return None
        return await asyncio.to_thread(search, durable.url, below=message.search_below)

    async def _take_inventory(self) -> Inventory | None:
        """What the daemon holds now; None if it does not say."""
        try:
            self._inventory = await self._daemon.call(lambda client: client.inventory(urgent=True))
        except DaemonFailed as error:
            _logger.error("event=no_inventory node=%s reason=%r", self.node, str(error))
            return None
        return self._inventory

    async def form(self, message: Form) -> None:
        """Take this generation's ranks, if the node has stopped for it."""
        if message.position < 0:
            await self._give_to_others(message)
            return
        if message.generation != self._stopped or message.generation <= self.generation:
            return
        self._form = self.accepted = message
        if self.term:  # Whoever leads next must hear that this generation was formed.
            self._write_down()
        try:
            if message.restore is None:  # Workers ask the daemon for their lanes, and do not wait for its generation.
                await self._daemon.configure(message)
                await self._workers.start(message)
            else:  # They first wait for their snapshot in this generation.
                await asyncio.gather(self._workers.start(message), self._daemon.configure(message))
            self._all_started = True
        except (DaemonFailed, SpawnFailed, ZygoteFailed) as error:
            trouble = Trouble(self.node, message.generation, "form_failed", str(error))
            self._tell(trouble, ("trouble",))
        self._write_down()
        self._tell(await self.heartbeat(with_inventory=False))

    async def _give_to_others(self, message: Form) -> None:
        """No ranks are here: what the daemon holds is read by those who have some."""
        if self._form is not None:
            return
        try:
            await self._daemon.configure(message)
        except DaemonFailed as error:
            self._tell(Trouble(self.node, message.generation, "form_failed", str(error)))

    async def halt(self, message: Hold | HaltAfter | GoOn) -> None:
        """Have the ranks stop after one and the same step, or go on after all."""
        if self._form is None or message.generation != self.generation:
            return
        match message:
            case Hold():
                if (answer := await self._halts.hold(message, self._form)) is not None:
                    self._tell(answer)
            case HaltAfter():
                self._halts.halt_after(message)
                if self._form.position == 0:
                    self._background.begin(self._tell_when_protected(message))
            case GoOn():
                self._halts.go_on(message)
                self._workers.go_on()

    async def _tell_when_protected(self, message: HaltAfter) -> None:
        """Ranks wait for it: the next heartbeat would come late."""
        while self.generation == message.generation and self._halts.stays(message.step):
            with contextlib.suppress(DaemonFailed):
                protected = (await self._daemon.call(lambda client: client.status())).levels.protected
                if protected is not None and protected >= message.step:
                    self._tell(await self.heartbeat(with_inventory=False))
                    return
            await asyncio.sleep(_PROTECTED_POLL_SECONDS)

    async def write_durable(self, message: WriteDurable) -> None:
        """Begin this node's part of a durable checkpoint."""
        if self._form is not None and self._all_started:
            await self._writers.write(self._form, message.snapshot)

    async def pin_durable(self, message: PinDurable) -> None:
        """Have the gate pin a version that is not due. If the daemon does not hear it, it will be said again."""
        if self._form is not None and message.generation == self.generation:
            with contextlib.suppress(DaemonFailed):
                await self._daemon.call(lambda client: client.pin(message.version))
                self._tell(await self.heartbeat(with_inventory=False))

    async def unpin(self, message: Unpin) -> None:
        """A durable checkpoint is written, or given up. If the daemon does not hear it, it will be said again."""
        if self._form is None:
            return
        await self._writers.stop(self._form, message.snapshot)
        if self._form.position == 0:
            with contextlib.suppress(DaemonFailed):
                await self._daemon.call(lambda client: client.unpin(message.snapshot))

    def inject(self, message: Inject) -> None:
        """Break something, for real."""
        match message.kind:
            case "kill-worker" if message.rank is not None:
                self._workers.kill(message.rank)
            case "kill-daemon":
                if self._daemon.pid is not None:
                    os.kill(self._daemon.pid, signal.SIGKILL)
            case "kill-agent":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill-node":
                kill_node(self.node_folder, self._host.running.values())

    # ---- what the node hears from below

    def _exited(self, exited: Exited) -> None:
        """A process of ours ended. Those of a generation that was stopped were ended by us."""
        if self._closing:
            return
        self._store.exited(exited)
        if exited.id == self._store.id:
            reason = f"exit code {exited.code}, signal {exited.signal}"
            self._tell(Trouble(self.node, self._stopped, "store_lost", reason), ("trouble",))
        running = self._form if self.generation == self._stopped else None
        if not self._writers.exited(running, exited):
            self._comm.tell_now()  # what it did last may say why
            self._workers.exited(exited)
        self._write_down()

    def _hear_worker(self, hello: link.Hello, message: link.LinkMessage) -> None:
        if isinstance(message, link.StoreReady):
            self._store.hear_port(hello.pid, message.port)
        else:
            if isinstance(message, link.Failed):
                self._comm.tell_now()
            self._workers.hear(hello, message)
            if isinstance(message, link.FirstStep | link.Stays):
                self._prepare()

    def _prepare(self) -> None:
        """Get ready for the next fault, once all workers train."""
        if self._form is not None and self._workers.train:
            self._background.begin(self._get_ready(self._form))

    async def _get_ready(self, form: Form) -> None:
        await self._store.prepare(form.generation)
        await self._workers.provide_standbys(form)

    def _daemon_died(self) -> None:
        if not self._closing:
            self._background.begin(self._restart_daemon())

    async def _restart_daemon(self) -> None:
        """Training goes on meanwhile: the workers write into memory that outlives the daemon."""
        if not self.node_folder.exists():
            self._on_lost()
            return
        began, port = time.monotonic(), self._daemon.port
        try:
            await self._daemon.start()
            if self._form is not None:
                await self._daemon.configure(self._form, resumed=True)
        except DaemonFailed as error:
            self._tell(Trouble(self.node, self.generation, "form_failed", str(error)), ("trouble",))
            return
        self._write_down()
        if self._daemon.port != port:
            reason = f"the daemon's port {port} was taken: the others do not reach it at {self._daemon.port}"
            self._tell(Trouble(self.node, self.generation, "form_failed", reason), ("trouble",))
            return
        reason = f"restarted in {time.monotonic() - began:.2f} s, as pid {self._daemon.pid}"
        self._tell(Trouble(self.node, self.generation, "daemon_exit", reason), ("daemon_exit", began))
        self._tell(await self.heartbeat(with_inventory=False))

    def _write_down(self) -> None:
        ready = self._host.ready
        record = NodeRecord(
            node=self.node,
            agent_pid=os.getpid(),
            daemon_pid=self._daemon.pid,
            daemon_port=self._daemon.port,
            zygote_pid=ready.pid if ready else None,
            stopped=self._stopped,
            form=self._form,
            workers=self._workers.records(),
            store_id=self._store.id,
            term=self.term,
            accepted=self.accepted if self.term else None,
        )
        self._file.write(record)

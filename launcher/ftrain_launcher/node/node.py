"""One node: what its agent does on the controller's word, and when something happens to workers, store or daemon.

What each part does is its own affair; here is in which order, and that no part works for a generation that is over:
`standing.py` judges the controller's words. What the controller must hear goes through `told.py`, so that it can be
said again to one that was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
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
from ftrain_launcher.node.daemons import DaemonFailed, DaemonKeeper
from ftrain_launcher.node.durable_search import search
from ftrain_launcher.node.durable_writers import DurableWriters
from ftrain_launcher.node.halt import NodeHalt
from ftrain_launcher.node.links import LinkServer
from ftrain_launcher.node.node_daemon import NodeDaemon
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.node.standing import Standing
from ftrain_launcher.node.state import NodeFile, NodeRecord, kill_node
from ftrain_launcher.node.store_host import StoreHost
from ftrain_launcher.node.told import Told
from ftrain_launcher.processes.spawning import PRELOAD, Exited
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_line import wait_for_root
from ftrain_launcher.processes.zygote_start import ZygoteConfig
from ftrain_launcher.rings.watch import CommWatch
from ftrain_launcher.to_agent import Form, GoOn, HaltAfter, Hold, Inject, PinDurable, Stop, Unpin, WriteDurable

_PROTECTED_POLL_SECONDS = 0.02


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
        self._errors_fd = errors_fd
        self._on_lost = on_lost
        """Called when the node's memory is gone: there is no node any more."""
        self._secret = folder.secret
        self._file = NodeFile(self.node_folder)
        self._told = Told(tell)
        self._tell = self._told.tell
        self._background = Background()
        self._closing = False

    # ---- life

    async def start(self) -> None:
        """Bring the node up, or re-adopt what an agent before this one left running."""
        self.node_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs = Path(self.job.config.work.log_folder)
        self._links = LinkServer(self.node_folder, self._hear_worker)
        keeper = DaemonKeeper(self.job, self.node, self.node_folder, self._secret, self._daemon_died)
        self._daemon = NodeDaemon(keeper, self.node, self._tell)
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
        self._comm = CommWatch(self.node, self.node_folder, self._workers, self._tell)
        self.answering = Answering(self.job, self.node, self.node_folder, self._workers, self._tell)
        before = self._file.read()
        self.standing = Standing(before)
        """What was stopped, what is formed, and who is obeyed."""
        await self._links.start()
        await asyncio.gather(self._daemon.begin(before, self.standing), self._adopt_workers(before))
        self._workers.open()
        self._halts = NodeHalt(self.node, self.node_folder)
        self._write_down()
        self._prepare()
        if self.job.config.detect is not Detect.OFF:
            self._background.begin(self._comm.run())

    async def _adopt_workers(self, before: NodeRecord | None) -> None:
        if before is not None and before.form is not None:
            self._store.id = before.store_id
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

    def join(self) -> Join:
        """How the node stands: the first message on every connection."""
        standing = self.standing
        return Join(
            node=self.node,
            host=self.job.host,
            hostname=socket.gethostname(),
            failure_domain=self._failure_domain,
            agent_pid=os.getpid(),
            daemon_pid=self._daemon.pid,
            daemon_port=self._daemon.port,
            generation=standing.generation if standing.is_complete else 0,
            stopped=standing.stopped,
            ranks=self._workers.states(),
            term=standing.term,
            accepted=standing.accepted.generation if standing.accepted else 0,
            forming=standing.is_forming,
        )

    def said(self) -> list[FromAgent]:
        """All that was told of the present generation, for a controller that may not have heard it."""
        return self._told.again()

    async def heartbeat(self, *, with_inventory: bool) -> Heartbeat:
        """How far workers and daemon are."""
        if (FOLDER_GONE,) not in self._told and not self.node_folder.exists():
            gone = Trouble(self.node, self.standing.generation, FOLDER_GONE, str(self.node_folder))
            self._tell(gone, (FOLDER_GONE,))
        status = await self._daemon.status()
        if with_inventory and status is not None:
            await self._daemon.take_inventory()
        return Heartbeat(
            node=self.node,
            generation=self.standing.generation,
            ranks=self._workers.states(),
            daemon_pid=self._daemon.pid,
            daemon=status,
            inventory=self._daemon.inventory,
        )

    async def _beat(self) -> None:
        """What has just happened is not to wait for the next heartbeat."""
        self._tell(await self.heartbeat(with_inventory=False))

    # ---- what the controller wants

    def promise(self, term: int) -> None:
        """Obey no controller of an older term from now on."""
        self.standing.term = term
        self._write_down()

    async def pause(self) -> None:
        """Nobody leads this node: its workers end, and what they left in memory stays."""
        self._comm.tell_now()
        await self._workers.end_all()
        self._comm.forget()
        self._halts.clear()
        self._write_down()

    async def stop(self, message: Stop) -> None:
        """Leave every generation older than this one, and say what the node holds."""
        if not self.standing.obeys(message):
            return
        if not self.node_folder.exists():
            self._on_lost()
            return
        starting: asyncio.Task[int | None] | None = None
        if message.generation > self.standing.stopped:
            self.standing.begin_to_stop(message.generation)
            self._store.retire()
            self._comm.tell_now()  # who waits for whom is of the past in a moment
            spared = self._store.spared(hosts=message.host_store)
            stopping = asyncio.create_task(self._workers.stop(message, spared))  # which first of all chooses what is
            starting = asyncio.create_task(self._host_store(message))  # killed: the new store is not among it
            await stopping
            self._comm.forget()
            self._halts.clear()
            self.standing.has_stopped()
            self._told.forget()
            self._write_down()
        port, inventory, durable = await asyncio.gather(
            starting or self._host_store(message), self._daemon.take_inventory(urgent=True), self._search(message)
        )
        if inventory is None:
            return  # What is here must not be guessed: the controller waits, and then gives the node up.
        self._tell(
            Stopped(
                node=self.node,
                generation=message.generation,
                inventory=inventory,
                store_port=port,
                durable=durable,
                staying=self._workers.staying,
            )
        )

    async def _host_store(self, message: Stop) -> int | None:
        """The port of the new generation's store, if it is to be hosted here; None too if it does not start."""
        return await self._store.port(message.generation) if message.host_store else None

    async def _search(self, message: Stop) -> DurableSearch | None:
        """What is on storage, if that is to be known."""
        durable = self.job.config.work.durable
        if durable is None or not message.search_durable:
            return None
        return await asyncio.to_thread(search, durable.url, below=message.search_below)

    async def form(self, message: Form) -> None:
        """Take this generation's ranks, if the node has stopped for it."""
        if message.position < 0:
            await self._give_to_others(message)
            return
        if not self.standing.takes(message):
            return
        self.standing.begin_to_form(message)
        if self.standing.term:  # Whoever leads next must hear that this generation was formed.
            self._write_down()
        try:
            if message.restore is None:  # Workers ask the daemon for their lanes, and do not wait for its generation.
                await self._daemon.configure(message)
                await self._workers.start(message)
            else:  # They first wait for their snapshot in this generation.
                await asyncio.gather(self._workers.start(message), self._daemon.configure(message))
            self.standing.has_formed()
        except (DaemonFailed, SpawnFailed, ZygoteFailed) as error:
            self._tell(Trouble(self.node, message.generation, "form_failed", str(error)), ("trouble",))
        self._write_down()
        await self._beat()

    async def _give_to_others(self, message: Form) -> None:
        """No ranks are here: what the daemon holds is read by those who have some."""
        if self.standing.form is not None:
            return
        try:
            await self._daemon.configure(message)
        except DaemonFailed as error:
            self._tell(Trouble(self.node, message.generation, "form_failed", str(error)))

    async def halt(self, message: Hold | HaltAfter | GoOn) -> None:
        """Have the ranks stop after one and the same step, or go on after all."""
        form = self.standing.form
        if form is None or message.generation != form.generation:
            return
        match message:
            case Hold():
                if (answer := await self._halts.hold(message, form)) is not None:
                    self._tell(answer)
            case HaltAfter():
                self._halts.halt_after(message)
                if form.position == 0:
                    self._background.begin(self._tell_when_protected(message))
            case GoOn():
                self._halts.go_on(message)
                self._workers.go_on()

    async def _tell_when_protected(self, message: HaltAfter) -> None:
        """Ranks wait for it: the next heartbeat would come late."""
        while self.standing.generation == message.generation and self._halts.stays(message.step):
            if await self._daemon.protects(message.step):
                await self._beat()
                return
            await asyncio.sleep(_PROTECTED_POLL_SECONDS)  # daemons answer what they are asked, and tell no news

    async def write_durable(self, message: WriteDurable) -> None:
        """Begin this node's part of a durable checkpoint."""
        if self.standing.form is not None and self.standing.is_complete:
            await self._writers.write(self.standing.form, message.snapshot)

    async def pin_durable(self, message: PinDurable) -> None:
        """Have the gate pin a version that is not due. If the daemon does not hear it, it will be said again."""
        form = self.standing.form
        if form is not None and message.generation == form.generation and await self._daemon.pin(message.version):
            await self._beat()

    async def unpin(self, message: Unpin) -> None:
        """A durable checkpoint is written, or given up."""
        form = self.standing.form
        if form is not None:
            await self._writers.stop(form, message.snapshot)
            if form.position == 0:
                await self._daemon.unpin(message.snapshot)

    def inject(self, message: Inject) -> None:
        """Break something, for real."""
        match message.kind:
            case "kill-worker" if message.rank is not None:
                self._workers.kill(message.rank)
            case "kill-daemon":
                self._daemon.kill()
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
            self._tell(Trouble(self.node, self.standing.stopped, "store_lost", reason), ("trouble",))
        if not self._writers.exited(self.standing.running, exited):
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
        if self.standing.form is not None and self._workers.train:
            self._background.begin(self._get_ready(self.standing.form))

    async def _get_ready(self, form: Form) -> None:
        await self._store.prepare(form.generation)
        await self._workers.provide_standbys(form)

    def _daemon_died(self) -> None:
        if not self._closing:
            self._background.begin(self._replace_daemon())

    async def _replace_daemon(self) -> None:
        if not self.node_folder.exists():
            self._on_lost()
            return
        serves = await self._daemon.replace(self.standing)
        self._write_down()
        if serves:
            await self._beat()

    def _write_down(self) -> None:
        ready, standing = self._host.ready, self.standing
        record = NodeRecord(
            node=self.node,
            agent_pid=os.getpid(),
            daemon_pid=self._daemon.pid,
            daemon_port=self._daemon.port,
            zygote_pid=ready.pid if ready else None,
            stopped=standing.stopped,
            form=standing.form,
            workers=self._workers.records(),
            store_id=self._store.id,
            term=standing.term,
            accepted=standing.accepted if standing.term else None,
        )
        self._file.write(record)

"""A node's snapshot daemon, as its agent and the controller know it: how it is, what it holds, that it was replaced.

`daemons.py` runs the process and carries questions to it; what is asked, and what is made of the answers, is here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time

from ftrain_launcher.from_agent import Trouble
from ftrain_launcher.node.checking import DamageWatch
from ftrain_launcher.node.daemons import DaemonFailed, DaemonKeeper
from ftrain_launcher.node.standing import Standing
from ftrain_launcher.node.state import NodeRecord
from ftrain_launcher.node.told import Tell
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.inventory import Inventory
from ftrain_snapshot.membership import Membership
from ftrain_snapshot.status import DaemonStatus
from ftrain_snapshot.words import SnapshotId

_logger = logging.getLogger(__name__)


class NodeDaemon:
    """One node's. Its memory outlives it, so that training goes on while it is away."""

    def __init__(self, keeper: DaemonKeeper, node: str, tell: Tell) -> None:
        self.inventory: Inventory | None = None
        """What it held when it was asked last; None: it has not answered yet."""
        self._keeper, self._node, self._tell = keeper, node, tell
        self._damage = DamageWatch(node)

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        return self._keeper.pid

    @property
    def port(self) -> int:
        """Where other nodes' daemons reach it."""
        return self._keeper.port

    # ---- its life

    async def begin(self, before: NodeRecord | None, standing: Standing) -> None:
        """Take over the one that an agent before this one left; else start one. Raises DaemonFailed."""
        if before is not None:
            self._keeper.port = before.daemon_port  # there its peers look for it
            if before.daemon_pid is not None and await self._keeper.adopt(before.daemon_pid, before.daemon_port):
                return
        await self._start(standing)

    async def replace(self, standing: Standing) -> bool:
        """Start another one after it has died, and say so; False: the generation cannot go on with it."""
        began, port = time.monotonic(), self.port
        killed_since = self._keeper.killed_since
        try:
            await self._start(standing)
        except DaemonFailed as error:
            self._tell(Trouble(self._node, standing.generation, "form_failed", str(error)), ("trouble",))
            return False
        if self.port != port:
            reason = f"the daemon's port {port} was taken: the others do not reach it at {self.port}"
            self._tell(Trouble(self._node, standing.generation, "form_failed", reason), ("trouble",))
            return False
        reason = f"restarted in {time.monotonic() - began:.2f} s, as pid {self.pid}"
        if killed_since:
            reason = f"killed, since {killed_since}; {reason}"
        self._tell(Trouble(self._node, standing.generation, "daemon_exit", reason), ("daemon_exit", began))
        return True

    async def _start(self, standing: Standing) -> None:
        await self._keeper.start()
        if (form := standing.form) is not None:  # as it stands by now
            await self.configure(form, resumed=True)

    async def configure(self, form: Form, *, resumed: bool = False) -> None:
        """Have it serve this generation; ``resumed``: whose workers run already. Raises DaemonFailed."""
        durable = form.work.durable
        membership = Membership(
            generation=form.generation,
            position=form.position,
            lanes=form.work.nproc_per_node,
            parity=form.work.parity,
            peers=form.peers,
            restore=form.restore,
            origin=form.origin,
            older=form.older,
            resumed=resumed,
            groups=form.groups,
            codec=form.work.codec,
            protect_bytes_per_second=form.work.protect_bytes_per_second,
            durable_every=durable.every if durable is not None else 0,
            durable_newest=form.durable_newest,
        )
        await self._keeper.call(lambda client: client.configure(membership))

    def kill(self) -> None:
        """SIGKILL it, as a fault would."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end and to give its memory back; kill it if it does not."""
        await self._keeper.stop(grace_seconds)

    # ---- what it is asked

    async def status(self) -> DaemonStatus | None:
        """How it is; None if it does not say. News of damage are told."""
        try:
            status = await self._keeper.call(lambda client: client.status())
        except DaemonFailed:
            return None
        if (news := self._damage.news(status)) is not None:
            self._tell(news, ("damage",))
        return status

    async def take_inventory(self, *, urgent: bool = False) -> Inventory | None:
        """What it holds now; None if it does not say. ``urgent``: the job waits for it."""
        try:
            self.inventory = await self._keeper.call(lambda client: client.inventory(urgent=urgent))
        except DaemonFailed as error:
            _logger.error("event=no_inventory node=%s reason=%r", self._node, str(error))
            return None
        return self.inventory

    async def protects(self, version: int) -> bool:
        """Whether that snapshot's parity is stored on other nodes."""
        with contextlib.suppress(DaemonFailed):
            protected = (await self._keeper.call(lambda client: client.status())).levels.protected
            return protected is not None and protected >= version
        return False

    async def pin(self, version: int) -> bool:
        """Have the gate pin a version that is not due; whether it heard."""
        with contextlib.suppress(DaemonFailed):
            await self._keeper.call(lambda client: client.pin(version))
            return True
        return False

    async def unpin(self, snapshot: SnapshotId) -> None:
        """A durable checkpoint is written, or given up. If this is not heard, it will be said again."""
        with contextlib.suppress(DaemonFailed):
            await self._keeper.call(lambda client: client.unpin(snapshot))

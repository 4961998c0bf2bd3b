"""The detached actor that owns a job on a Ray cluster: its controller's launcher, its members, its output, its end.

It outlives the driver that made it. Members and placement group are its own, so Ray takes them back if it dies. With
its machine the job is lost, so it runs on the head's, which the cluster cannot lose either. Methods are called from
drivers and members, several at once; what they have in common is behind one lock.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from ftrain_launcher.engines.ray.audience import Audience
from ftrain_launcher.engines.ray.fleet import Fleet
from ftrain_launcher.engines.ray.kept import Kept
from ftrain_launcher.engines.ray.member import write_secret
from ftrain_launcher.engines.ray.order import Order
from ftrain_launcher.engines.ray.placing import EXIT_USAGE, Places, bundles
from ftrain_launcher.engines.ray.window import Line, Window
from ftrain_launcher.jobs import JobFolder, Result, state_home

KEPT_SECONDS = 600.0
"""How long it can be asked how the job ended, if nobody has heard of that yet."""
_LOOK_SECONDS = 0.5
_ENDING_SECONDS = 10.0
"""For members to end, once the job has: of a machine that was lost just then none will say so."""
_POLL_SECONDS = 0.05
_PORTS_FROM = 20000


class Supervisor:
    """Made an actor by the driver (`driver.py`)."""

    def __init__(self, order: bytes) -> None:
        import ray

        self._encoded = order
        self._order = msgspec.json.decode(order, type=Order)
        self._folder = JobFolder(state_home() / "jobs" / self._order.name)
        self._own_handle = ray.get_runtime_context().current_actor
        self._changed = threading.Condition()
        self._window = Window()
        self._places = Places()
        self._refused: list[str] = []
        self._come: set[str] = set()
        self._place: tuple[str, int] | None = None
        self._over = False
        self._result: Result | None = None
        self._leader: Kept | None = None
        self._early: list[int] = []
        """Signals that came before it."""
        self._fleet: Fleet | None = None
        self._hopeless = False
        self._last_words = ""
        self._audience = Audience()
        threading.Thread(target=self._run, daemon=True).start()

    # ---- for drivers

    def met(self, order: bytes) -> tuple[bool, str | None]:
        """Is the job over, and has somebody heard how it ended? In what another order is for another job."""
        with self._changed:
            told = self._audience.told
        return told, self._order.difference(msgspec.json.decode(order, type=Order))

    def joined(self, wait_seconds: float) -> tuple[bytes, str, str, int] | None:
        """The job's record, its secret, and where its controller listens; None: not yet, or it has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._place or self._result, wait_seconds)
            if self._place is None:
                return None
            return (self._folder.path / "job.json").read_bytes(), self._folder.secret.read_text(), *self._place

    def heard(
        self, position: int, wait_seconds: float, listener: str
    ) -> tuple[list[tuple[int, bytes]], int, tuple[int, str] | None]:
        """Lines from a position on, the next position, and how the job ended. A negative position: the end."""
        with self._changed:
            self._audience.asks(listener, time.monotonic())
            position = self._window.end if position < 0 else position
            self._changed.wait_for(lambda: self._window.end > position or self._result, wait_seconds)
            lines = [(line.stream, line.text) for line in self._window.after(position)]
            ended = None if self._result is None else (self._result.exit_code, self._result.message)
            return lines, self._window.end, ended

    def signal(self, number: int) -> None:
        """What the user sent to the driver is for the controller's launcher."""
        with self._changed:
            if self._leader is None:
                self._early.append(number)
            else:
                self._leader.send(number)

    def status(self) -> Any:
        """What `ftrain status --json` says; None: nothing yet."""
        from ftrain_launcher import query
        from ftrain_launcher.errors import ControllerAway

        if self._place is None:
            return None
        try:
            return query.status(self._folder)
        except ControllerAway:
            return None

    def farewell(self, listener: str) -> None:
        """It has heard how the job ended."""
        with self._changed:
            self._audience.tell(listener)
            self._changed.notify_all()

    # ---- for members

    def came(self, member: str, machine: str) -> tuple[str, int] | tuple[()] | None:
        """May a member run on this machine? Where the controller is; (): another one does; None: the job is over."""
        with self._changed:
            if self._over or self._place is None or self._folder.result() is not None:
                return None
            self._come.add(member)
            return self._place if self._places.claim(member, machine) else ()

    def left(self, member: str, refused: bool, reason: str) -> None:
        """Its launcher has ended; ``refused``: none will be of use there."""
        with self._changed:
            self._places.leave(member, useless=refused)
            if refused:
                self._refused.append(reason)
            self._changed.notify_all()

    def said(self, lines: list[tuple[int, bytes]]) -> None:
        """Output of a member, or of the controller's launcher."""
        with self._changed:
            for stream, text in lines:
                self._window.add(Line(stream, text))
            self._changed.notify_all()

    # ---- the job, in a thread of its own

    def _run(self) -> None:
        import ray

        result = Result(1, "the actor that owns the job failed; Ray's log of it says why")
        try:
            result = self._lead()
        except OSError as error:
            result = Result(EXIT_USAGE, f"{socket.gethostname()}: {error}")
        finally:
            with self._changed:
                self._over, self._result = True, result
                self._changed.notify_all()
            if self._fleet is not None:
                self._fleet.close()
            self._wait_audience()
            ray.kill(self._own_handle)

    def _lead(self) -> Result:
        """Run the controller's launcher, and the members, from the job's start to its end."""
        import ray

        order, secret_file = self._order, write_secret(self._order)
        try:
            host, port, began = ray.util.get_node_ip_address(), _free_port(), time.time()  # type: ignore[no-untyped-call]
            arena, words = os.path.join(order.arena_folder, f"ftrain-{order.name}"), order.lead(host, port, secret_file)
            leader = Kept(words, arena=arena, folder=order.folder, variables=order.variables, hear=self._hear)
            with self._changed:
                self._leader = leader
                for number in self._early:
                    leader.send(number)
            code = self._wait_folder(leader, began)
            if code is None:
                with self._changed:
                    self._place = host, port
                    self._changed.notify_all()
                self._fleet = Fleet(order, self._encoded, self._own_handle)
                code = self._watch(leader, self._fleet)
                self._wait_members()
        finally:
            os.unlink(secret_file)
        return self._how_it_ended(code)

    def _wait_folder(self, leader: Kept, began: float) -> int | None:
        """Until the launcher has written down the job; its exit code, if it ends before."""
        while (code := leader.wait(_POLL_SECONDS)) is None:
            if (self._folder.path / "job.json").exists() and self._folder.record().created >= began:
                break
        return code

    def _watch(self, leader: Kept, fleet: Fleet) -> int:
        """See to the members until the job has ended; its exit code."""
        while (code := leader.wait(_LOOK_SECONDS)) is None:
            if fleet.grows:
                self._grow(fleet)
            if not self._hopeless and self._cannot_begin():
                self._hopeless = True
                leader.send(signal.SIGINT)
        return code

    def _grow(self, fleet: Fleet) -> None:
        gone = fleet.ended()
        with self._changed:
            for member in gone:
                self._places.leave(member)
            running = frozenset(name for name in fleet.extras if self._places.holds(name))
            closed, aside = self._places.closed, self._places.aside
            begun = len(self._come) >= bundles(self._order)
            ending = self._places.empty  # all have left: what remains is the controller's end
        if begun and not ending:
            fleet.grow(running, closed, aside)

    def _cannot_begin(self) -> bool:
        """Too many machines refuse, and the job was never formed: nobody need wait until the time for hosts is over."""
        if bundles(self._order) - len(self._refused) >= self._order.least:
            return False
        status = self.status()
        return status is not None and status["generation"] == 0

    def _wait_members(self) -> None:
        """They hear of the end from the controller; their last lines come before they leave."""
        with self._changed:
            self._over = True
            self._changed.wait_for(lambda: self._places.empty, _ENDING_SECONDS)

    def _wait_audience(self) -> None:
        """Until all who want to know how the job ended have heard it; not for ever."""
        until = time.monotonic() + KEPT_SECONDS
        with self._changed:
            while not self._audience.is_over(time.monotonic()) and time.monotonic() < until:
                self._changed.wait(_LOOK_SECONDS)

    def _how_it_ended(self, code: int) -> Result:
        if self._hopeless:
            return Result(EXIT_USAGE, self._refused[0])
        result = self._folder.result() if self._place is not None else None
        return Result(code, self._last_words) if result is None else Result(code, result.message)

    def _hear(self, line: Line) -> None:
        if words := line.own_words:
            self._last_words = words.removeprefix("error: ")
        self.said([(line.stream, line.text)])


def _free_port() -> int:
    """Below those that the system hands out, so that nobody is given it while the controller is started again."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(min(_PORTS_FROM, lowest // 2), lowest), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free for the controller")

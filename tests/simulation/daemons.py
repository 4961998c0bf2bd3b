"""Several daemons' sessions in one thread, with the lines between them: real stores, real messages, and a seed's order.

What is real: everything in a `Session`, its loop's timers and slices of work, stores in shared memory. What is not:
sockets, and the clock. Small messages overtake bulk that is not under way yet, as in transport.py; bytes are read when
they leave, not when they are queued. A daemon is given any number of frames before its timers get their turn.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from snapshot_nodes import capture, content

from ftrain_snapshot import arena, dials
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.gate_keeper import GATE, GateKeeper
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.messages import VerifyReport
from ftrain_snapshot.parities import Parities
from ftrain_snapshot.session import Session
from ftrain_snapshot.store import Store
from ftrain_snapshot.wire import PeerHello
from ftrain_snapshot.words import SnapshotId

BATCH_MAX = 5
"""Frames that come at once, at most."""
ROUND_SECONDS = 0.0005
"""How long a round takes on average, in which something is done."""

Frame = tuple[Any, Any, Callable[[], None] | None]


class End:
    """One end of a line, as `transport.Connection` is to its owner."""

    def __init__(self, owner: Daemon) -> None:
        self.owner = owner
        self.other: End | None = None
        self.on_message: Callable[[Any, Any, memoryview], None] = lambda _c, _m, _b: None
        self.on_closed: Callable[[Any, str], None] = lambda _c, _r: None
        self.on_proved: Callable[[Any], None] = lambda _c: None
        self.closed = self.welcomed = self.over = False
        self._said: deque[Frame] = deque()
        self._urgent: deque[Frame] = deque()
        self._bulk: deque[Frame] = deque()
        self._pipe: deque[tuple[Any, bytes]] = deque()

    @property
    def is_busy(self) -> bool:
        """Something is queued, or under way."""
        return not self.closed and bool(self._said or self._urgent or self._bulk or self._pipe or self.over)

    def send(self, message: Any, body: memoryview = memoryview(b"")) -> None:  # noqa: B008 - immutable
        if not self.closed:
            self._said.append((message, body, None))

    def send_bulk(self, message: Any, body: memoryview, *, urgent: bool = False, on_sent: Any = None) -> None:
        if not self.closed:
            (self._urgent if urgent else self._bulk).append((message, body, on_sent))

    def drop_bulk(self, wanted: Callable[[Any], bool]) -> None:
        self._bulk = deque(frame for frame in self._bulk if wanted(frame[0]))
        self._urgent = deque(frame for frame in self._urgent if wanted(frame[0]))

    def close(self, reason: str) -> None:
        """What is under way still comes; then the other side sees the end."""
        if not self.closed:
            self._shut()
            self.on_closed(self, reason)

    def _shut(self) -> None:
        self.closed = True
        for queue in (self._said, self._urgent, self._bulk):
            queue.clear()
        if self.other is not None:
            self.other.over = True

    def cut(self) -> None:
        """The network cuts the line: both sides see it, in their own time, and nothing more comes."""
        for end in (self, self.other):
            if end is not None:
                end._pipe.clear()
                end.over = True

    def leave(self, frames: int) -> None:
        """So many frames leave their queues."""
        for _ in range(frames):
            queue = self._said or self._urgent or self._bulk
            if not queue or self.other is None:
                return
            message, body, on_sent = queue.popleft()
            self.other._pipe.append((message, bytes(body)))
            if on_sent is not None:
                on_sent()

    def take(self, frames: int) -> None:
        """So many frames arrive."""
        for _ in range(frames):
            if self.closed:
                return
            if not self._pipe:
                if self.over:
                    self.close("the peer closed the connection")
                return
            message, body = self._pipe.popleft()
            try:
                self.on_message(self, message, memoryview(body))
            except ProtocolError as error:
                self.close(str(error))


class Daemon:
    """One node: its folder, and the session of its generation."""

    def __init__(self, world: World, number: int) -> None:
        self.number, self.folder = number, world.folder / f"node-{number}"
        self.folder.mkdir(exist_ok=True)
        self.loop = Loop(lambda: world.now)
        self.lines = Lines(self.loop, b"")
        self.page = ControlPage(self.folder, create=True)
        self.store = Store(self.folder)
        for _ in self.store.attach():
            pass
        self.session: Session | None = None
        self.ends: list[End] = []
        self.hellos: dict[End, PeerHello] = {}

    def configure(self, membership: Membership) -> None:
        session = Session(self.loop, self.store, self.page, membership, self.lines, lambda: None)
        if self.session is not None:
            self.session.close()
        self.session = session
        session.start()
        for end, hello in list(self.hellos.items()):
            self._introduce(end, hello)

    def adopt(self, end: End) -> None:
        """Somebody has dialled."""
        end.on_message = lambda _, hello, __: self._introduce(end, hello)
        end.on_closed = lambda *_: self.hellos.pop(end, None)

    def _introduce(self, end: End, hello: PeerHello) -> None:
        self.hellos[end] = hello
        if self.session is None or hello.generation > self.session.membership.generation:
            return
        del self.hellos[end]
        if hello.generation < self.session.membership.generation:
            end.close("that generation is over")
        else:
            self.session.adopt(end, hello)  # type: ignore[arg-type]

    def end(self) -> None:
        """As SIGKILL: its lines break, its files stay."""
        for end in self.ends:
            end.cut()
            end._shut()
        self.loop.close()
        self.page.close()


class World:
    """A job's nodes by position, and the order in which everything happens to them."""

    def __init__(self, folder: Path, random: Random, nodes: int, parity: int, lanes: int, size: int) -> None:
        self.folder, self.random = folder, random
        self.parity, self.lanes, self.size = parity, lanes, size
        self.now, self.generation, self.version = 0.0, 0, -1
        self._made = 0
        self._all: dict[int, Daemon] = {}
        self.nodes = [self.new() for _ in range(nodes)]

    def new(self) -> Daemon:
        self._made += 1
        return self.start(self._made)

    def start(self, number: int) -> Daemon:
        self._all[number] = daemon = Daemon(self, number)
        return daemon

    def lose(self, position: int) -> None:
        """The node is gone, and an empty one takes its place."""
        self.nodes[position].end()
        shutil.rmtree(self.nodes[position].folder)
        self.nodes[position] = self.new()

    def restart(self, position: int) -> None:
        """Its daemon is killed and started again."""
        self.nodes[position].end()
        self.nodes[position] = self.start(self.nodes[position].number)

    def close(self) -> None:
        for daemon in self.nodes:
            daemon.end()

    @contextmanager
    def dialling(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dials, "dial", self._dial)
            yield

    def _dial(self, loop: Loop, _: str, port: int, __: Lines) -> End:
        caller = next(daemon for daemon in self._all.values() if daemon.loop is loop)
        end, target = End(caller), self._all[port]
        caller.ends.append(end)
        if target in self.nodes:
            end.other = End(target)
            end.other.other = end
            target.ends.append(end.other)
            target.adopt(end.other)
            loop.later(self.random.random() * 0.003, lambda: end.closed or end.on_proved(end))
        else:
            end.over = True
        return end

    # What happens.

    def configure(self, restore: SnapshotId | None, *, resumed: bool = False) -> None:
        """All are told of a generation, one after the other, and things happen in between."""
        self.generation += not resumed
        peers = tuple(Peer(p, f"node-{d.number}", "sim", d.number) for p, d in enumerate(self.nodes))
        order = self.random.sample(range(len(peers)), len(peers))
        for position in order:
            self.nodes[position].configure(
                Membership(self.generation, position, self.lanes, self.parity, peers, restore, resumed, codec="numpy")
            )
            self.rounds(self.random.choice((0, 0, 1, 4, 30)))

    def round(self) -> bool:
        """One daemon's turn: what has come to it, its timers, a slice of its work. False: nobody had anything."""
        for daemon in self.nodes:
            daemon.ends = [end for end in daemon.ends if not end.closed]
        busy = [d for d in self.nodes if d.loop._wait_seconds() == 0.0 or any(end.is_busy for end in d.ends)]
        if not busy:
            return False
        self.now += self.random.expovariate(1 / ROUND_SECONDS)
        daemon = self.random.choice(busy)
        for end in self.random.sample(daemon.ends, len(daemon.ends)):
            if self.random.random() < 0.7:
                end.leave(self.random.randint(1, BATCH_MAX))
            if self.random.random() < 0.7:
                end.take(self.random.randint(1, BATCH_MAX))
        daemon.loop.turn()
        return True

    def rounds(self, count: int) -> None:
        for _ in range(count):
            if not self.round():
                return

    def wait(self) -> None:
        """Nobody has anything to do: it is the next timer's time."""
        self.now += min(wait for d in self.nodes if (wait := d.loop._wait_seconds()) >= 0.0)
        for daemon in self.nodes:
            daemon.loop.turn()

    def run(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Go on until ``done``, for so long at most, on the world's clock."""
        end = self.now + seconds
        while not done():
            assert self.now < end, f"not within {seconds} s: {what}\n{self.state()}"
            if not self.round():
                self.wait()

    def state(self) -> str:
        lines = [f"gate: {self.gate.levels()}"]
        for position, daemon in enumerate(self.nodes):
            assert daemon.session is not None
            repair = daemon.session.repair
            lines.append(
                f"{position}: restored {repair.restored}, stored {repair.stored}, damaged {daemon.store.damaged}, "
                f"linked {sorted(daemon.session.links)}, failure {repair.failure!r}"
            )
        return "\n".join(lines)

    # What workers and people do, and what is seen.

    @property
    def gate(self) -> GateKeeper:
        session = self.nodes[GATE].session
        assert session is not None
        assert session.gate is not None
        return session.gate

    def reserve(self) -> None:
        for daemon in self.nodes:
            for lane in range(self.lanes):
                for _ in daemon.store.reserve(lane, self.size):
                    pass

    def snapshot(self) -> SnapshotId:
        """All lanes are captured, sealed and protected."""
        page = self.nodes[GATE].page
        self.run(lambda: page.gate()[1] >= 0, 30.0, "an open gate")
        self.version += 1
        snapshot = SnapshotId(self.version, self.generation, page.gate()[1])
        for position, daemon in enumerate(self.nodes):
            for lane in range(self.lanes):
                with capture(daemon.folder, lane, snapshot, self.data(snapshot, position, lane), b"m") as captured:
                    captured.finish()
                assert daemon.session is not None
                daemon.session.protect.progress(lane, snapshot)
        self.run(lambda: self.is_protected(snapshot), 60.0, f"{snapshot} protected")
        return snapshot

    def data(self, snapshot: SnapshotId, position: int, lane: int) -> bytes:
        return content(snapshot.version, position, lane, max(5000, self.size - 700_000 * position))

    def is_protected(self, snapshot: SnapshotId) -> bool:
        return self.gate.levels().protected == snapshot.version

    def is_restored(self) -> bool:
        return all(d.session is not None and d.session.repair.restored for d in self.nodes)

    def verify(self) -> list[VerifyReport]:
        """Everything is read."""
        reports: list[VerifyReport] = []
        for daemon in self.nodes:
            assert daemon.session is not None
            daemon.session.scrub.verify(reports.append)
        self.run(lambda: len(reports) == len(self.nodes), 60.0, "reports")
        return reports

    def flip(self, position: int, snapshot: SnapshotId, lane: int, rotation: int, stripe: int) -> None:
        """A bit of this chunk, wherever it lies."""
        daemon = self.nodes[position]
        group = daemon.store.group
        if rotation in group.parity_rotations(position):
            parities: Parities = daemon.store._parities
            home = parities.tables[snapshot.slot][lane, rotation].home(stripe)
            path, at = arena.parity_path(daemon.folder, home or 0, lane, rotation), stripe * CHUNK_BYTES
        else:
            mapped, chunk = Lane(daemon.folder, lane), group.chunk_of(position, rotation, stripe)
            path = arena.home_path(daemon.folder, mapped.regions[snapshot.slot].home(chunk), lane)
            mapped.close()
            at = chunk * CHUNK_BYTES
        with path.open("r+b") as file:
            file.seek(at + 9)
            byte = file.read(1)[0]
            file.seek(at + 9)
            file.write(bytes([byte ^ 0x40]))

    def places(self, position: int, snapshot: SnapshotId) -> list[tuple[int, int, int]]:
        """(lane, rotation, stripe) of all that is kept there."""
        daemon = self.nodes[position]
        assert daemon.session is not None
        catalog = daemon.store.catalog(snapshot)
        return [] if catalog is None else list(daemon.session.scrub._places(catalog))

    def check(self, snapshot: SnapshotId) -> None:
        """All data is what was captured."""
        for position, daemon in enumerate(self.nodes):
            for lane in range(self.lanes):
                header = daemon.store.lanes.sealed(lane, snapshot)
                region = daemon.store.lanes.region(snapshot.slot, lane)
                assert header is not None, (position, lane)
                assert region is not None
                found = b"".join(region.spans(0, header.data_bytes))
                assert found == self.data(snapshot, position, lane), (position, lane)

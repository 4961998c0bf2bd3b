"""A simulated node: its memory, its workers, its daemon and store, and the agent that keeps the agent's contract.

The contract that the coordinator relies on, in short:

- ``Stop(g)`` ends the workers of older generations (their exits are not reported) and is answered with what the
  daemon holds; it is ignored if ``g`` was formed here already, and answered again if it comes again.
- ``Form(g)`` is obeyed once, and only by a node whose last stop was ``g``.
- After each (re)connect comes ``Join``, and then again all that was said of the present generation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ftrain_launcher.from_agent import (
    DurableEnded,
    FromAgent,
    Held,
    Join,
    RankRestored,
    RankState,
    RankStepped,
    Stopped,
    Trouble,
    WorkerExit,
)
from ftrain_launcher.to_agent import (
    Form,
    GoOn,
    HaltAfter,
    Hold,
    PinDurable,
    Shutdown,
    Stop,
    ToAgent,
    Unpin,
    WriteDurable,
)
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from simulation.cluster import Cluster, Line
    from simulation.storage import Writer


class Worker:
    """One training process."""

    def __init__(self, machine: Machine, form: Form, rank: int) -> None:
        self.machine, self.form, self.rank = machine, form, rank
        self.generation = form.generation
        self.alive = True
        self.restored: RankRestored | None = None
        self.stepped: RankStepped | None = None
        self.halted_after: int | None = None
        self.step: int | None = None
        self.exit: WorkerExit | None = None

    def end(self, **how: object) -> None:
        """The process ends by itself or is killed by somebody else; its agent, if there is one, tells."""
        if self.alive:
            self.alive = False
            self.report(**how)

    def report(self, **how: object) -> None:
        """Say how it ended, or that the training function raised."""
        self.exit = WorkerExit(
            node=self.machine.name, generation=self.generation, rank=self.rank, pid=1, step=self.step, **how
        )
        self.machine.tell(self.exit, ("exit", self.rank))


class Machine:
    """One node. What is written here outlives its agent."""

    def __init__(self, cluster: Cluster, name: str, failure_domain: str) -> None:
        self.cluster, self.world, self.name = cluster, cluster.world, name
        self.failure_domain = failure_domain
        self.alive = True
        self.memory: dict[SnapshotId, list[bool]] = {}
        """Of each snapshot: has it its own data, has it its parity?"""
        self.share_of: dict[SnapshotId, int] = {}
        """Of which position both are."""
        self.workers: dict[int, Worker] = {}
        self.stopped = 0
        self.form: Form | None = None
        self.position = -1
        """As its daemon was configured last."""
        self.daemon_up = True
        self.store = (0, 0)
        """Generation and port of the store that runs here; port 0: none."""
        self.agent: Agent | None = None
        self.word: Hold | HaltAfter | None = None
        """What its ranks find where they look before they commit."""
        self.writer: Writer | None = None
        self.write_ended: DurableEnded | None = None

    @property
    def generation(self) -> int:
        return self.form.generation if self.form else 0

    def start_agent(self) -> None:
        if self.alive and self.agent is None:
            self.agent = Agent(self)
            self.agent.connect()

    def tell(self, message: FromAgent, key: tuple[object, ...] | None = None) -> None:
        if self.agent is not None:
            self.agent.tell(message, key)

    def inventory(self) -> Inventory:
        held = self.memory.items()
        return Inventory(tuple(Holding(s, self.share_of[s], data, parity) for s, (data, parity) in held))

    def keep(self, snapshot: SnapshotId, *, parity: bool) -> None:
        """Write data or parity of a snapshot; what was in its slot is overwritten."""
        for other in [s for s in self.memory if s.slot == snapshot.slot and s != snapshot]:
            del self.memory[other]
        self.memory.setdefault(snapshot, [False, False])[parity] = True
        self.share_of[snapshot] = self.position

    def stop_workers(self) -> None:
        for worker in self.workers.values():
            worker.alive = False
        self.workers.clear()
        self.word = None
        self.stop_writer()
        self.write_ended = None
        self.form = None

    def stop_writer(self) -> None:
        if self.writer is not None:
            self.writer.alive = False
            self.writer = None

    def die(self) -> None:
        """The whole node is lost at once."""
        if self.alive:
            self.alive = False
            for worker in self.workers.values():
                worker.alive = False
            self.stop_writer()
            self.store = (0, 0)
            self.kill_agent()
            self.cluster.checkers.lost(self)

    def kill_agent(self) -> None:
        if self.agent is not None:
            agent, self.agent = self.agent, None
            agent.die()


class Agent:
    """The process between controller and node. All that it knows by itself is gone when it dies."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.world, self.cluster = machine, machine.world, machine.cluster
        self.alive = True
        self.line: Line | None = None
        self.recent: deque[FromAgent] = deque(maxlen=3)
        self.said: dict[tuple[object, ...], FromAgent] = {}
        self._wishes: deque[ToAgent] = deque()
        self._busy = False
        self._adopt()

    def _adopt(self) -> None:
        """Find what an agent before this one left running."""
        machine = self.machine
        if machine.form is None and machine.stopped and self.world.chance(0.5):
            machine.stopped = 0  # It was not written down yet.
        if self.world.chance(0.5):  # Whose end was told to the agent before is not adopted, whoever heard that.
            machine.workers = {rank: w for rank, w in machine.workers.items() if w.exit is None or w.alive}
        for worker in machine.workers.values():
            for key, said in (("restored", worker.restored), ("stepped", worker.stepped), ("exit", worker.exit)):
                if said is not None:
                    self.said[(key, worker.rank)] = said
        if machine.write_ended is not None and self.world.chance(0.5):  # Else it was told to the agent before.
            self.said[("durable",)] = machine.write_ended
        hosts = machine.form is not None and machine.form.position == 0
        if hosts and machine.store != (machine.generation, machine.form.store_port):
            self.said[("trouble",)] = Trouble(machine.name, machine.generation, "store_lost", "")

    # ---- the line

    def connect(self) -> None:
        if not self.alive or self.line is not None:
            return
        if not self.cluster.shell.up:
            self.world.after(self.world.between(0.02, 0.3), self.connect)
            return
        machine = self.machine
        ranks = tuple(RankState(w.rank, 0, 1, "running") for w in machine.workers.values())
        join = Join(
            node=machine.name,
            host=machine.name,
            failure_domain=machine.failure_domain,
            agent_pid=1,
            daemon_pid=1,
            daemon_port=1,
            generation=machine.generation,
            stopped=machine.stopped,
            ranks=ranks,
        )
        self.line = self.cluster.shell.accept(self)
        again = list(self.recent) if self.world.chance(0.3) else []
        for message in (join, *self.said.values(), *again):
            self.line.up(message)

    def hung_up(self, line: Line) -> None:
        """A line broke."""
        if self.line is line:
            self.line = None
            self.world.after(self.world.between(0.02, 0.5), self.connect)

    def tell(self, message: FromAgent, key: tuple[object, ...] | None) -> None:
        if key is not None:
            self.said[key] = message
        self.recent.append(message)
        if self.line is not None:
            self.line.up(message)

    def die(self) -> None:
        self.alive = False
        if self.line is not None:
            line, self.line = self.line, None
            line.cut()

    # ---- what the controller wants, one thing after the other

    def hear(self, message: ToAgent) -> None:
        if self.alive:
            self._wishes.append(message)
            self._go_on()

    def _go_on(self) -> None:
        while self._wishes and not self._busy:
            match self._wishes.popleft():
                case Stop() as stop:
                    self._stop(stop)
                case Form() as form:
                    self._form(form)
                case Hold() | HaltAfter() | GoOn() as word:
                    self._halt(word)
                case WriteDurable() as message:
                    self._write(message)
                case PinDurable(generation, version):
                    self._pin(generation, version)
                case Unpin(snapshot):
                    self._unpin(snapshot)
                case Shutdown():
                    self._later(self.world.between(0.01, 0.5), self._shut_down)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._busy = True

        def finish() -> None:
            if self.alive:
                self._busy = False
                do()
                self._go_on()

        self.world.after(seconds, finish)

    def _stop(self, message: Stop) -> None:
        machine = self.machine
        if message.generation <= machine.generation or message.generation < machine.stopped:
            return
        if message.generation > machine.stopped:
            machine.stopped = message.generation
            machine.stop_workers()
            self.said.clear()
        self._later(self.cluster.faults.stop_seconds(machine), lambda: self._stopped(message))

    def _stopped(self, message: Stop) -> None:
        machine = self.machine
        port = None
        if message.host_store:
            if machine.store[0] != message.generation or not machine.store[1]:
                starts = self.cluster.faults.store_starts()
                machine.store = (message.generation, self.cluster.new_port() if starts else 0)
            port = machine.store[1] or None
        answer = Stopped(
            node=machine.name,
            generation=message.generation,
            inventory=machine.inventory(),
            store_port=port,
            durable=self.cluster.storage.search() if message.search_durable else None,
        )
        self.tell(answer, None)

    def _form(self, form: Form) -> None:
        machine = self.machine
        if form.generation != machine.stopped or form.generation <= machine.generation:
            return
        self.cluster.training_of(form).configure(machine)
        if form.position < 0:
            return
        if self.cluster.faults.forms():
            self._later(self.world.between(0.01, 0.1), lambda: self._spawn(form))
        else:
            machine.form = form
            self.tell(Trouble(machine.name, form.generation, "form_failed", ""), ("trouble",))

    def _spawn(self, form: Form) -> None:
        machine = self.machine
        machine.form = form
        nproc = form.work.nproc_per_node
        for rank in range(form.position * nproc, (form.position + 1) * nproc):
            worker = machine.workers[rank] = Worker(machine, form, rank)
            self.cluster.checkers.spawned(worker)
            self.cluster.training_of(form).start(worker)

    def _halt(self, word: Hold | HaltAfter | GoOn) -> None:
        machine = self.machine
        if machine.form is None or word.generation != machine.generation:
            return
        machine.word = None if isinstance(word, GoOn) else word
        if isinstance(word, Hold):
            step = self.cluster.training_of(machine.form).step
            self.tell(Held(machine.name, machine.generation, word.attempt, step), None)
        elif isinstance(word, GoOn):
            for key in [key for key in self.said if key[0] == "halted"]:
                del self.said[key]

    def _write(self, message: WriteDurable) -> None:
        machine, told = self.machine, self.said.get(("durable",))
        if machine.form is None or (isinstance(told, DurableEnded) and told.snapshot == message.snapshot):
            return
        if machine.writer is not None and machine.writer.alive:
            if machine.writer.snapshot == message.snapshot:
                return
            machine.stop_writer()  # That nobody waits for it any more was not heard.
        self.cluster.checkers.writes()
        machine.writer = self.cluster.new_writer(machine, message)

    def _pin(self, generation: int, version: int) -> None:
        machine = self.machine
        if machine.form is not None and machine.generation == generation and machine.daemon_up:
            self.cluster.training_of(machine.form).pin.ask(version)

    def _unpin(self, snapshot: SnapshotId) -> None:
        machine = self.machine
        if machine.writer is not None and machine.writer.snapshot == snapshot:
            machine.stop_writer()
        if machine.form is not None and machine.position == 0 and machine.daemon_up:
            self.cluster.training_of(machine.form).pin.release(snapshot)

    def _shut_down(self) -> None:
        """Orderly: what was said is heard before the line closes."""
        machine = self.machine
        machine.stop_workers()
        machine.memory.clear()
        machine.alive = False
        self.alive = False
        machine.agent = None
        if self.line is not None:
            self.line.close()

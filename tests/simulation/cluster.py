"""A simulated job: the production coordinator and its journal, in a shell that crashes, among machines that do too.

    Machine/Agent --- Line ---> Shell: journal, then Coordinator.handle ---> commands ---> Line, Engine

Lines keep their order and nothing else: each message takes its own time; a line that is cut loses what is still
under way, or part of it; that it closed is noticed late. The shell may die between writing an event down and
carrying out its commands; the next one replays the real JSON lines.
"""

from __future__ import annotations

from simulation.checkers import Checkers, state_of
from simulation.elastic import ElasticCheckers
from simulation.faults import Faults, Plan
from simulation.machines import Agent, Machine
from simulation.storage import Storage, Writer
from simulation.training import Training
from simulation.world import World

from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.engine_messages import NodeGone, ReapNode, StartNode
from ftrain_launcher.from_agent import FromAgent, Join
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    Announce,
    CheckNodes,
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    HostCame,
    JobStarted,
    Joined,
    Left,
    NodeChecked,
    Progress,
    Send,
    Tick,
)
from ftrain_launcher.job.membership import NodeState
from ftrain_launcher.to_agent import Form, ToAgent, WriteDurable
from ftrain_snapshot.words import SnapshotId


class Line:
    """One agent's connection to the shell."""

    def __init__(self, shell: Shell, agent: Agent) -> None:
        self.shell, self.agent, self.world = shell, agent, shell.world
        self.life = shell.life
        self.number = 0
        """Given when the join arrives; 0: not yet."""
        self.ends_at: float | None = None
        """What would arrive after this is lost."""
        self.up_free = self.down_free = self.world.now

    def up(self, message: FromAgent | Progress) -> None:
        """Agent to shell."""
        self.up_free = max(self.up_free, self.world.now + self._delay())
        if isinstance(message, Join):  # Agents are heard in the order in which they came.
            self.up_free = max(self.up_free, self.shell.joined_at.get(message.node, 0.0))
            self.shell.joined_at[message.node] = self.up_free
        self.world.at(self.up_free, self._arrive_up, message)

    def down(self, message: ToAgent) -> None:
        """Shell to agent."""
        self.down_free = max(self.down_free, self.world.now + self._delay())
        self.world.at(self.down_free, self._arrive_down, message)

    def _delay(self) -> float:
        return self.world.between(0.0005, 0.01) if self.world.chance(0.95) else self.world.between(0.01, 0.5)

    def _alive(self) -> bool:
        return self.ends_at is None or self.world.now < self.ends_at

    def _arrive_up(self, message: FromAgent | Progress) -> None:
        if self._alive() and self.shell.up and self.life == self.shell.life:
            self.shell.hear(self, message)

    def _arrive_down(self, message: ToAgent) -> None:
        if self._alive() and self.agent.line is self:
            self.agent.hear(message)

    def cut(self) -> None:
        """It breaks: some of what is under way is lost, and the shell notices in its own time."""
        if self.ends_at is None:
            self.ends_at = self.world.between(self.world.now, max(self.world.now, self.up_free))
            noticed = self.ends_at + self.world.between(0.0, 0.05 if self.world.chance(0.8) else 1.5)
            self.world.at(noticed, self.shell.lose, self)
            self.agent.hung_up(self)

    def close(self) -> None:
        """The agent closes it, after all that it said."""
        self.world.at(self.up_free + 0.001, self.shell.lose, self)


class Shell:
    """The controller process, which may die, and its journal, which does not."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world = cluster, cluster.world
        self.up = True
        self.life = 0
        self.journal: list[bytes] = []
        self.joined_at: dict[str, float] = {}
        self.dies_after_commands: int | None = None
        """A planned death: at the next event, with only so many of its commands carried out."""
        self._connections = 0
        self._lines: dict[str, Line] = {}
        self._alarm: float | None = None

    def accept(self, agent: Agent) -> Line:
        return Line(self, agent)

    def hear(self, line: Line, message: FromAgent | Progress) -> None:
        if isinstance(message, Join):
            self._connections += 1
            line.number = self._connections
            self._lines[message.node] = line
            self.submit(Joined(message, line.number))
        elif line.number:
            self.submit(message)

    def lose(self, line: Line) -> None:
        """A line's end is noticed."""
        if self.up and line.life == self.life and line.number:
            name = line.agent.machine.name
            if self._lines.get(name) is line:
                del self._lines[name]
            self.submit(Left(name, line.number))

    def submit(self, event: Event) -> None:
        """Write down, decide, carry out."""
        if not self.up or self.cluster.ended is not None:
            return
        self.journal.append(encode(Entry(self.world.now, event)))
        commands = self.cluster.coordinator.handle(event, self.world.now)
        self.cluster.checkers.after(event, commands)
        dies = self.dies_after_commands
        if any(isinstance(c, EndJob) for c in commands) and self.world.chance(0.1):
            dies = len(commands) - 1  # The end is decided and written down, and nobody hears of it.
        for command in commands[:dies]:
            self._carry_out(command)
        if dies is not None:
            self.dies_after_commands = None
            self.crash()
        elif self.up:
            self._set_alarm()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(node, message):
                if node in self._lines:
                    self._lines[node].down(message)
                self.cluster.faults.saw(message)
            case StartNode(node):
                self.cluster.engine.start(node)
            case ReapNode(node):
                self.cluster.engine.reap(node)
            case EndJob(exit_code, message):
                self.cluster.ended = (exit_code, message)
            case CheckNodes(names):
                for name in names:
                    checked = NodeChecked(name, self.world.chance(0.7), "")
                    self.world.after(self.world.between(0.1, 2.0), self.submit, checked)
            case Announce():
                pass

    def _set_alarm(self) -> None:
        deadline = self.cluster.coordinator.next_deadline()
        if deadline is not None and (self._alarm is None or deadline < self._alarm or self._alarm <= self.world.now):
            self._alarm = deadline
            self.world.at(deadline, self._ring, deadline, self.life)

    def _ring(self, deadline: float, life: int) -> None:
        if life != self.life or not self.up:
            return
        if self._alarm == deadline:
            self._alarm = None
        due = self.cluster.coordinator.next_deadline()
        if due is not None and due <= self.world.now:
            self.submit(Tick())
        else:
            self._set_alarm()

    # ---- death and return

    def crash(self) -> None:
        """Killed: all lines are gone, and the launcher starts a new one."""
        if not self.up or self.cluster.ended is not None:
            return
        self.up = False
        self.life += 1
        self._alarm = None
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.ends_at = self.world.now
        for machine in self.cluster.machines.values():
            if machine.agent is not None and machine.agent.line is not None:
                machine.agent.hung_up(machine.agent.line)
        self.world.after(self.world.between(0.1, 3.0), self._return)

    def _return(self) -> None:
        before = self.cluster.coordinator
        self.cluster.coordinator = self.replayed()
        assert state_of(self.cluster.coordinator) == state_of(before), "the replayed state is another"
        self.up = True
        self.submit(ControllerRestarted())
        self.cluster.engine.greet()

    def replayed(self) -> Coordinator:
        """What the journal says."""
        entries = map(decode, self.journal)
        first = next(entries)
        assert isinstance(first.event, JobStarted)
        return rebuild(first.event, first.now, entries)


class Host:
    """A real host's launcher: it offers the host whenever there is room for a node, until it hears of one."""

    def __init__(self, engine: Engine, number: int) -> None:
        self.engine, self.world = engine, engine.world
        self.mark = f"launcher-{number}"
        self.node: str | None = None
        """What it was told to run."""
        self.up = True

    def offer(self) -> None:
        """Say so; the answer may get lost, and a controller may be away."""
        shell = self.engine.cluster.shell
        if self.up and self.node is None:
            if shell.up:
                self.engine.offering = self
                shell.submit(HostCame(self.mark, self.mark))
                self.engine.offering = None
            self.world.after(self.world.between(0.5, 1.5), self.offer)


class Engine:
    """Where nodes come from: emulated as they are asked for, or the hosts that offer themselves."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world = cluster, cluster.world
        self._known: set[str] = set()
        self._unsaid: list[NodeGone] = []
        self.hosts: list[Host] = []
        self.offering: Host | None = None
        """The host that speaks to the controller just now: a node that is started is its."""

    def open(self) -> None:
        """Real hosts begin to come."""
        if self.cluster.config.hosts:
            for _ in range(self.cluster.config.nodes + self.cluster.config.spares):
                self._new_host(5.0)

    def _new_host(self, seconds_max: float) -> None:
        host = Host(self, len(self.hosts))
        self.hosts.append(host)
        self.world.after(self.world.between(0.1, seconds_max), host.offer)

    def start(self, name: str) -> None:
        if self.cluster.config.hosts:
            if self.offering is None or self.world.chance(0.1):
                return
            self.offering.node = name
        if name in self._known:
            return
        self._known.add(name)
        how = self.cluster.faults.node_start()
        if how == "fails":
            self.world.after(self.world.between(0.1, 1.0), self._gone, name)
        elif how == "starts":
            self.world.after(self.world.between(0.1, 1.0), self._started, name)

    def _started(self, name: str) -> None:
        if name in self._known and name not in self.cluster.machines:
            domain = self.world.random.choice(self.cluster.plan.domains)
            machine = self.cluster.machines[name] = Machine(self.cluster, name, domain)
            machine.start_agent()

    def reap(self, name: str) -> None:
        self._known.discard(name)
        machine = self.cluster.machines.get(name)
        if machine is not None:
            machine.die()
        self._free(name)

    def _free(self, name: str) -> None:
        """What ran at a host is gone: it may offer itself again."""
        for host in self.hosts:
            if host.node == name:
                host.node = None
                self.world.after(self.world.between(0.01, 0.5), host.offer)

    def lost(self, name: str) -> None:
        """All processes of a node are gone; mostly that is seen at once."""
        if self.world.chance(0.7):
            self.world.after(self.world.between(0.01, 0.3), self._gone, name)
        for host in self.hosts:
            if host.node == name and self.world.chance(0.3):  # The whole host, its launcher included.
                host.up = False
                self._new_host(20.0)

    def _gone(self, name: str) -> None:
        self._known.discard(name)
        self._unsaid.append(NodeGone(name, "its processes are gone"))
        if self.cluster.shell.up:
            self._say()

    def _say(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for gone in unsaid:
            self.cluster.shell.submit(gone)

    def greet(self) -> None:
        """A new controller is there: hear what the one before left unsaid, as the controller has it."""
        for node in list(self.cluster.coordinator.nodes.values()):
            starting = node.state is NodeState.STARTING and not self.cluster.config.hosts
            if starting and node.name not in self._known:
                self.start(node.name)
            elif node.gone and node.name in self._known:
                self.reap(node.name)
        self._say()


class Cluster:
    """One job from its start to its end, from a seed."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.world = World(seed)
        self.plan = plan or Plan.draw(self.world.random)
        self.config = self.plan.config
        self.coordinator = Coordinator(self.config)
        self.machines: dict[str, Machine] = {}
        self.ended: tuple[int, str] | None = None
        self.checkers = ElasticCheckers(self) if self.config.elastic else Checkers(self)
        self.faults = Faults(self)
        self.storage = Storage(self)
        self.shell = Shell(self)
        self.engine = Engine(self)
        self.trainings: dict[int, Training] = {}
        self.doubtful: set[SnapshotId] = set()
        """What cannot be certified, if another world is to start from it."""
        self._ports = 0

    def new_port(self) -> int:
        self._ports += 1
        return self._ports

    def new_writer(self, machine: Machine, message: WriteDurable) -> Writer:
        return Writer(machine, message)

    def training_of(self, form: Form) -> Training:
        """The workers of one generation."""
        if form.generation not in self.trainings:
            self.trainings[form.generation] = Training(self, form)
        return self.trainings[form.generation]

    def run(self) -> tuple[int, str]:
        """Let the job run to its end; what it ended with."""
        self.shell.submit(JobStarted(self.config))
        self.faults.begin()
        self.engine.open()
        self.world.run(self.faults.over_by + self.plan.recovery_seconds_max, lambda: self.ended is not None)
        assert self.ended is not None, f"no end in time: {self.coordinator.phase}, {self.coordinator.exit_message}"
        self.checkers.at_end(*self.ended)
        return self.ended

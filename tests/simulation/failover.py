"""A simulated job over hosts with several candidates for its controller, in a network that falls apart and heals.

Candidates run the production coordinator, election, fence and journal; agents keep the agent's contract and promise
terms. Nothing is shared: whoever is cut off decides by what it knows. `Truth` watches what really runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from simulation.world import World

from ftrain_launcher.control.copies import Copies
from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.control.writing import STANDSTILL_SECONDS
from ftrain_launcher.engine_messages import StartNode
from ftrain_launcher.from_agent import FromAgent, Join, RankState, RankStepped, Recalled, Stopped
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    HostCame,
    JobConfig,
    JobStarted,
    Joined,
    Left,
    Send,
    StoodStill,
    Tick,
)
from ftrain_launcher.job.fencing import FIRST_TERM, Ask, Elected, Election, Stale
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_NODES
from ftrain_launcher.to_agent import Elect, Form, Recall, Shutdown, Stand, Stop, ToAgent
from ftrain_launcher.work import Work
from ftrain_snapshot.inventory import Inventory

PATIENCE_SECONDS = 2.0
GRACE_SECONDS = 8.0
NOTICE_SECONDS = 2.0


def config(nodes: int, candidates: int) -> JobConfig:
    work = Work(
        job="simulated",
        argv=("train.py",),
        folder="/",
        log_folder="/",
        nproc_per_node=1,
        snapshot_every=1,
        parity=1,
        max_restarts=10_000,
    )
    return JobConfig(
        work=work,
        nodes=nodes,
        hosts=True,
        agent_grace_seconds=2.0,
        stop_timeout_seconds=3.0,
        start_timeout_seconds=6.0,
        shutdown_grace_seconds=1.0,
        host_wait_seconds=1000.0,
        candidates=tuple(f"h{i}:1" for i in range(candidates)),
    )


class Truth:
    """What really runs, and what may never happen."""

    def __init__(self) -> None:
        self.forms: dict[int, tuple[str, ...]] = {}
        self.running: dict[str, int] = {}
        """Node to the generation of its workers."""
        self.trained: list[int] = []

    def formed(self, form: Form) -> None:
        nodes = tuple(peer.node for peer in form.peers)
        assert self.forms.setdefault(form.generation, nodes) == nodes, f"two generations {form.generation}"

    def run(self, node: str, generation: int | None) -> bool:
        """A node's workers were started or ended; whether its generation is complete now."""
        if generation is None:
            self.running.pop(node, None)
            return False
        self.running[node] = generation
        whole = [g for g, nodes in self.forms.items() if all(self.running.get(n) == g for n in nodes)]
        assert len(whole) <= 1, f"split brain: generations {whole} train at once"
        if generation not in whole:
            return False
        if not self.trained or self.trained[-1] != generation:
            assert not self.trained or generation > self.trained[-1], "an older generation trains again"
            self.trained.append(generation)
        return True


def rebuilt(journal: list[bytes]) -> Coordinator:
    """The coordinator that wrote this journal."""
    entries = map(decode, journal)
    first = next(entries)
    assert isinstance(first.event, JobStarted)
    return rebuild(first.event, first.now, entries)


class Line:
    """Between a host's agent and a candidate."""

    def __init__(self, agent: Agent, candidate: Candidate) -> None:
        self.agent, self.candidate = agent, candidate
        self.number = agent.cluster.next_line()
        self.life, self.open = candidate.life, True
        self._free = agent.cluster.world.now

    def send(self, deliver: Callable[..., None], *arguments: object) -> None:
        """In order; lost if the hosts cannot reach each other then."""
        world = self.agent.cluster.world
        self._free = max(self._free, world.now + world.between(0.001, 0.05 if world.chance(0.9) else 0.4))
        world.at(self._free, self._arrive, deliver, arguments)

    def _arrive(self, deliver: Callable[..., None], arguments: tuple[object, ...]) -> None:
        cluster = self.agent.cluster
        reach = cluster.reach(self.agent.host, self.candidate.host)
        if self.open and reach and self.agent.line is self and self.life == self.candidate.life:
            deliver(*arguments)

    def close(self) -> None:
        """Both ends notice, each in its own time."""
        if self.open:
            self.open = False
            world = self.agent.cluster.world
            world.after(world.between(0.01, 0.3), self.agent.hung_up, self)
            world.after(world.between(0.01, 0.3), self.candidate.lose, self)


class Candidate:
    """A host's controller process: it leads or stands by. What it wrote down outlives it."""

    def __init__(self, cluster: Cluster, host: int) -> None:
        self.cluster, self.world, self.host = cluster, cluster.world, host
        self.up, self.life = True, 0
        self.journal: list[bytes] = []
        """What is on its disk."""
        self.unwritten: list[bytes] = []
        self.leads, self.term = host == 0, FIRST_TERM if host == 0 else 0
        self.lines: dict[str, Line] = {}
        self.leader: Candidate | None = None
        self.told: Stale | None = None
        self.takeovers = 0
        self.world.after(0.0, self._begin, True)

    # ---- life

    def _begin(self, first: bool = False) -> None:
        if not self.up:
            return
        self.lines, self.leader, self.told = {}, None, None
        self._open_journal()
        self.followers: set[Candidate] = set()
        if self.leads:
            self.coordinator = Coordinator(self.cluster.config) if first else rebuilt(self.journal)
            self.submit(JobStarted(self.cluster.config) if first else ControllerRestarted())
        else:
            self.election = Election(self.host, len(self.cluster.config.candidates), self.term)
        self.world.after(0.0, self._look, self.life)

    def _open_journal(self) -> None:
        """What was not on the disk is forgotten; nothing had followed from it."""
        self.unwritten, self._writes = [], False
        self.copies: Copies[Command] = Copies(len(self.journal))

    def crash(self, seconds: float | None) -> None:
        """The process dies; None: for good."""
        if self.up:
            self.up = False
            self._hang_up()
            if seconds is not None:
                self.world.after(seconds, self._return)

    def _return(self) -> None:
        self.up = True
        self._begin()

    def _hang_up(self) -> None:
        self.life += 1
        for line in list(self.lines.values()):
            line.close()
        for other in self.cluster.candidates:
            if other.up and other.leads and self in other.followers:
                other.drop(self)

    def _look(self, life: int) -> None:
        """Who else leads: follow it, or give way to it."""
        if not self.up or life != self.life:
            return
        reach = self.cluster.reach
        seen = [c for c in self.cluster.candidates if c.up and c is not self and reach(self.host, c.host)]
        newest_term = max((c.term for c in seen), default=0)
        if self.leads and newest_term > self.term:
            self.term = newest_term
            self.step_down()
            return
        if not self.leads:
            self.term = max(self.term, newest_term)
            newest = max((c for c in seen if c.leads), key=lambda c: c.term, default=None)
            if self.leader is not None and (self.leader not in seen or self not in self.leader.followers):
                self.leader = None
            if newest is not None and newest.term >= self.term and newest is not self.leader:
                self.leader = newest
                self.journal = list(newest.journal)
                newest.follow(self)
            elif self.leader is None:
                self.journal = list(max((c.journal for c in [self, *seen]), key=self._weight))
                self._poll()
        else:
            now = self.world.now
            for name in self.copies.overdue(now):
                self.drop(self.cluster.candidates[int(name)])
            for line in list(self.lines.values()):
                if not self.cluster.reach(line.agent.host, self.host) and self.world.chance(0.4):
                    line.close()
        self.world.after(0.5, self._look, life)

    def _weight(self, journal: list[bytes]) -> tuple[int, int]:
        """Which of two journals knows more: of the newer controller; then the longer one."""
        return (self.cluster.look_into(journal).term if journal else 0, len(journal))

    def step_down(self) -> None:
        self.leads = False
        self._hang_up()
        self._begin()

    # ---- followers

    def follow(self, other: Candidate) -> None:
        self.followers.add(other)
        self.copies.follow(str(other.host), len(self.journal))

    def drop(self, other: Candidate) -> None:
        self.followers.discard(other)
        self.copies.leave(str(other.host))
        self._carry_out_ready()

    def _copy(self, other: Candidate, line: bytes, place: int, life: int) -> None:
        if not self.cluster.reach(self.host, other.host) or life != self.life:
            return
        if other.up and other.leader is self and other in self.followers and len(other.journal) == place:
            other.journal.append(line)
            self.world.after(self.world.between(0.001, 0.02), self._acknowledged, other, place + 1, life)

    def _acknowledged(self, other: Candidate, length: int, life: int) -> None:
        if life == self.life and other in self.followers and self.cluster.reach(self.host, other.host):
            self.copies.follow(str(other.host), length)
            self._carry_out_ready()

    # ---- leading

    def submit(self, event: Event) -> None:
        if not (self.up and self.leads):
            return
        self.unwritten.append(encode(Entry(self.world.now, event)))
        commands = self.coordinator.handle(event, self.world.now)
        self.copies.hold(len(self.journal) + len(self.unwritten), commands, self.world.now)
        if not self._writes:
            self._write()
        deadline = self.coordinator.next_deadline()
        if deadline is not None:
            self.world.at(deadline, self._ring, self.life)

    def _write(self) -> None:
        """All that waits, at once; now and then the disk stands still."""
        self._writes, self._since = True, self.world.now
        seconds = self.world.between(0.5, 6.0) if self.world.chance(0.005) else self.world.between(0.001, 0.01)
        self.world.after(seconds, self._on_disk, list(self.unwritten), self.life)

    def _on_disk(self, lines: list[bytes], life: int) -> None:
        if life != self.life:
            return
        for line in lines:
            self.journal.append(line)
            for other in sorted(self.followers, key=lambda c: c.host):
                delay = self.world.between(0.001, 0.02)
                self.world.after(delay, self._copy, other, line, len(self.journal) - 1, self.life)
        del self.unwritten[: len(lines)]
        self.copies.write(len(self.journal), self.world.now)
        self._carry_out_ready()
        self._writes = False
        if self.world.now - self._since > STANDSTILL_SECONDS:
            self.submit(StoodStill(self.world.now - self._since))
        elif self.unwritten:
            self._write()

    def _carry_out_ready(self) -> None:
        for command in self.copies.ready():
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(node, message) if node in self.lines:
                line = self.lines[node]
                line.send(line.agent.hear, line, message, self.term)
            case StartNode(node):
                self.cluster.start(self, node)
            case EndJob(exit_code, message):
                assert exit_code == EXIT_NODES, message
                assert "in a row were lost before they could run" in message, message
                self.cluster.ended = True

    def _ring(self, life: int) -> None:
        late = self._writes and self.world.now - self._since > STANDSTILL_SECONDS
        if self.up and self.leads and life == self.life and not late:
            deadline = self.coordinator.next_deadline()
            if deadline is not None and deadline <= self.world.now:
                self.submit(Tick())

    # ---- agents

    def accept(self, line: Line) -> None:
        leader = self.leader.host if not self.leads and self.leader is not None else None
        line.send(line.agent.hear, line, Stand(self.term, self.leads, leader), self.term)

    def hear(self, line: Line, message: FromAgent) -> None:
        if isinstance(message, Recalled):
            if not self.leads:
                self.election.learn(message.form)
                self._poll()
        elif isinstance(message, Join):
            if self.leads and message.term > self.term:
                self.step_down()
                return
            self.lines[message.node] = line
            if self.leads:
                self.submit(Joined(message, line.number))
            else:
                self.election.come(message)
                self._poll()
        elif self.leads and self.lines.get(line.agent.node) is line:
            self.submit(message)

    def lose(self, line: Line) -> None:
        if self.up and line.life == self.life and self.lines.get(line.agent.node) is line:
            del self.lines[line.agent.node]
            if self.leads:
                self.submit(Left(line.agent.node, line.number))
            else:
                self.election.go(line.agent.node)

    def _poll(self) -> None:
        copy = self.cluster.look_into(self.journal) if self.journal else None
        match self.election.poll(*((copy.quorums, copy.formed) if copy is not None else ([], 0))):
            case Ask(term, nodes):
                self.term = max(self.term, term)
                for node in nodes:
                    line = self.lines[node]
                    line.send(line.agent.hear, line, Elect(term), term)
            case Elected(term, stopped, recalled):
                self.leads, self.term = True, term
                self.cluster.recalled += recalled is not None
                self.takeovers += 1
                self._hang_up()
                self.lines, self.followers, self.leader = {}, set(), None
                self._open_journal()
                self.coordinator = rebuilt(self.journal) if self.journal else Coordinator(self.cluster.config)
                self.world.after(0.5, self._look, self.life)
                if not self.journal:
                    self.submit(JobStarted(self.cluster.config))
                self.submit(ControllerRestarted(term, stopped, recalled))
            case Stale(_, _, node) as stale if stale != self.told:
                self.told = stale
                line = self.lines[node]
                line.send(line.agent.hear, line, Recall(), self.term)


class Agent:
    """A node's agent, and the node: it lives as long as its host runs it."""

    def __init__(self, cluster: Cluster, host: int, node: str) -> None:
        self.cluster, self.world, self.host, self.node = cluster, cluster.world, host, node
        self.alive = True
        self.promised = self.stopped = 0
        self.form: Form | None = None
        self.accepted: Form | None = None
        """The newest that it took, also once it has stopped for another one."""
        self.works = False
        self.line: Line | None = None
        self.current = 0
        self.lost_at = self.world.now
        self._wishes = 0
        self._connect()

    def _connect(self) -> None:
        """Patiently to the last controller; then to the first candidate that answers."""
        if not self.alive or self.line is not None:
            return
        cluster, away = self.cluster, self.world.now - self.lost_at
        if away > GRACE_SECONDS:
            self._stop_workers()
        order = [self.current]
        if away > PATIENCE_SECONDS:
            order += [i for i in range(len(cluster.candidates)) if i != self.current]
        for index in order:
            candidate = cluster.candidates[index]
            if candidate.up and cluster.reach(self.host, candidate.host):
                self.line = Line(self, candidate)
                candidate.accept(self.line)
                self.world.after(2.5, self._give_up_waiting, self.line)
                return
        self.world.after(self.world.between(0.1, 0.5), self._connect)

    def _give_up_waiting(self, line: Line) -> None:
        """At one that stands by: perhaps another one leads by now, or an earlier candidate is there again."""
        if self.line is line and not line.candidate.leads:
            hint = line.candidate.leader
            self.current = hint.host if hint is not None else 0
            line.close()
        elif self.line is line and (
            line.life != line.candidate.life or not self.cluster.reach(self.host, line.candidate.host)
        ):
            line.close()
        elif self.line is line:
            self.world.after(NOTICE_SECONDS, self._give_up_waiting, line)

    def hung_up(self, line: Line) -> None:
        if self.line is line:
            if line.candidate.leads:
                self.lost_at = self.world.now
            self.line = None
            self.world.after(self.world.between(0.05, 0.3), self._connect)

    def tell(self, message: FromAgent) -> None:
        if self.line is not None:
            self.line.send(self.line.candidate.hear, self.line, message)

    def _join(self) -> None:
        form = self.form
        generation = form.generation if form is not None and self.works else 0
        ranks = (RankState(form.position, 0, 1, "running"),) if form is not None and self.works else ()
        join = Join(
            node=self.node,
            host=self.node,
            agent_pid=1,
            daemon_pid=1,
            daemon_port=1,
            generation=generation,
            stopped=self.stopped,
            ranks=ranks,
            term=self.promised,
            accepted=self.accepted.generation if self.accepted is not None else 0,
        )
        self.tell(join)

    def hear(self, line: Line, message: ToAgent, term: int) -> None:
        if not self.alive:
            return
        match message:
            case Stand(term, leads):
                if leads and term >= self.promised:
                    self.promised, self.current = term, line.candidate.host
                self._join()
            case Elect(term):
                self.promised = max(self.promised, term)
                self._join()
            case Recall():
                assert self.accepted is not None
                self.tell(Recalled(self.node, self.accepted))
            case _ if term < self.promised:
                return
            case Stop() as stop:
                self._stop(stop)
            case Form() as form:
                self._form(form)
            case Shutdown():
                self.end()
                self.cluster.freed(self.host)

    def _stop_workers(self) -> None:
        self.works = False
        self.cluster.truth.run(self.node, None)

    def _stop(self, stop: Stop) -> None:
        accepted = self.form.generation if self.form is not None else 0
        if stop.generation <= accepted or stop.generation < self.stopped:
            return
        self.stopped, self.form = stop.generation, None
        self._stop_workers()
        line = self.line
        self.world.after(self.world.between(0.01, 0.2), self._stopped, line, stop)

    def _stopped(self, line: Line | None, stop: Stop) -> None:
        if self.alive and self.line is line and self.stopped == stop.generation and self.form is None:
            port = 1 if stop.host_store else None
            self.tell(Stopped(node=self.node, generation=stop.generation, inventory=Inventory(()), store_port=port))

    def _form(self, form: Form) -> None:
        if form.generation != self.stopped or (self.form is not None and form.generation <= self.form.generation):
            return
        self.cluster.truth.formed(form)
        self.form = self.accepted = form
        self.world.after(self.world.between(0.01, 0.2), self._spawn, form)

    def _spawn(self, form: Form) -> None:
        if self.alive and self.form is form:
            self.works = True
            if self.cluster.truth.run(self.node, form.generation):
                self.world.after(0.1, self.cluster.step, form)

    def stepped(self, form: Form) -> None:
        if self.alive and self.form is not None and self.form.generation == form.generation and self.works:
            position = self.form.position
            self.tell(RankStepped(self.node, form.generation, position, 1, self.world.now))

    def end(self) -> None:
        self.alive = False
        self._stop_workers()
        if self.line is not None:
            self.line.close()


class Cluster:
    """Hosts, the first of which are candidates, until a time."""

    def __init__(self, seed: int, *, nodes: int, spares: int, candidates: int) -> None:
        self.world, self.config, self.truth = World(seed), config(nodes, candidates), Truth()
        self.groups = [0] * (nodes + spares)
        """Hosts of one number reach each other."""
        self.dead: set[int] = set()
        self.agents: dict[int, Agent] = {}
        self.recalled = self._lines = 0
        """Takeovers by one that learned from the agents what was formed last."""
        self.ended = False
        """Its nodes came and went for so long that the job was given up."""
        self._read: dict[tuple[int, bytes], Coordinator] = {}
        self.candidates = [Candidate(self, i) for i in range(candidates)]
        for host in range(nodes + spares):
            self.world.after(self.world.between(0.1, 2.0), self._offer, host)

    def look_into(self, journal: list[bytes]) -> Coordinator:
        """What a journal says; not to be changed."""
        key = (len(journal), journal[-1])
        if key not in self._read:
            self._read = {key: rebuilt(journal), **dict(list(self._read.items())[:4])}
        return self._read[key]

    def next_line(self) -> int:
        self._lines += 1
        return self._lines

    def reach(self, a: int, b: int) -> bool:
        return a == b or (self.groups[a] == self.groups[b] and not {a, b} & self.dead)

    def _offer(self, host: int) -> None:
        """A host that runs no node says so to whoever leads, as far as it can see."""
        if host in self.dead or host in self.agents:
            return
        leaders = [c for c in self.candidates if c.up and c.leads and self.reach(host, c.host)]
        if leaders:
            newest = max(leaders, key=lambda c: c.term)
            newest.submit(HostCame(f"launcher-{host}", f"h{host}"))
        self.world.after(self.world.between(0.5, 1.5), self._offer, host)

    def start(self, candidate: Candidate, node: str) -> None:
        """Of an offer that a follower held up, the host is known by its mark."""
        mark = candidate.coordinator.nodes[node].launcher
        host = int(mark.rpartition("-")[2])
        if host not in self.agents and host not in self.dead and self.reach(host, candidate.host):
            agent = self.agents[host] = Agent(self, host, node)
            agent.current = candidate.host

    def freed(self, host: int) -> None:
        del self.agents[host]
        self.world.after(self.world.between(0.1, 0.5), self._offer, host)

    def step(self, form: Form) -> None:
        """All ranks of a generation have made a step, if their hosts reach each other."""
        here = [agent for agent in self.agents.values() if agent.node in {peer.node for peer in form.peers}]
        if len(here) == len(form.peers) and all(self.reach(here[0].host, agent.host) for agent in here):
            for agent in here:
                agent.stepped(form)
        elif any(self.truth.running.get(peer.node) == form.generation for peer in form.peers):
            self.world.after(1.0, self.step, form)

    # ---- faults

    def split(self, dice: random.Random) -> None:
        self.groups = [dice.randrange(dice.choice((2, 2, 3))) for _ in self.groups]

    def heal(self) -> None:
        self.groups = [0] * len(self.groups)

    def kill_host(self, host: int) -> None:
        self.dead.add(host)
        if host < len(self.candidates):
            self.candidates[host].crash(None)
        agent = self.agents.pop(host, None)
        if agent is not None:
            agent.end()

    def is_over(self) -> bool:
        """Given up, or most of the last generation's nodes are gone: nobody can know any more what became of them."""
        leaders = [c for c in self.candidates if c.up and c.leads]
        if self.ended or not leaders:
            return self.ended
        coordinator = max(leaders, key=lambda c: c.term).coordinator
        known = [coordinator.nodes[a.node] for a in self.agents.values() if a.node in coordinator.nodes]
        left = [node.name for node in known if not node.gone]
        return bool(coordinator.formed) and not coordinator.fence.allows(left, coordinator._formed)

    def trains(self) -> bool:
        """The newest generation of the newest controller runs on all its nodes."""
        leaders = [c for c in self.candidates if c.up and c.leads]
        if not leaders:
            return False
        coordinator = max(leaders, key=lambda c: c.term).coordinator
        runs = [self.truth.running.get(name or "") for name in coordinator.positions]
        return coordinator.phase is Phase.RUNNING and set(runs) == {coordinator.formed}

"""A host's controller process in the simulation of failover.py: production coordinator, election, fence and journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftrain_launcher.control.copies import Copies
from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.control.writing import STANDSTILL_SECONDS
from ftrain_launcher.engine_messages import StartNode
from ftrain_launcher.from_agent import FromAgent, Join, Recalled
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    JobStarted,
    Joined,
    Left,
    Send,
    StoodStill,
    Tick,
)
from ftrain_launcher.job.fencing import FIRST_TERM, Ask, Elected, Election, Stale
from ftrain_launcher.job.policy import EXIT_NODES
from ftrain_launcher.to_agent import Elect, Recall, Stand

if TYPE_CHECKING:
    from simulation.failover import Cluster
    from simulation.failover_agent import Line


def rebuilt(journal: list[bytes]) -> Coordinator:
    """The coordinator that wrote this journal."""
    entries = map(decode, journal)
    first = next(entries)
    assert isinstance(first.event, JobStarted)
    return rebuild(first.event, first.now, entries)


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

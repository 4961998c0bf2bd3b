"""A node's agent in the simulation of failover.py: it keeps the agent's contract, and promises terms; and its line to a
candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ftrain_launcher.from_agent import FromAgent, Join, RankState, RankStepped, Recalled, Stopped
from ftrain_launcher.to_agent import Elect, Form, Recall, Shutdown, Stand, Stop, ToAgent
from ftrain_snapshot.inventory import Inventory

if TYPE_CHECKING:
    from simulation.failover import Cluster
    from simulation.failover_candidate import Candidate


PATIENCE_SECONDS = 2.0
GRACE_SECONDS = 8.0
NOTICE_SECONDS = 2.0


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

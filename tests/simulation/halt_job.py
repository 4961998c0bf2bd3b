"""The job of test_halt.py: one generation, whose controller and agents are the real ones on simulated time."""

from __future__ import annotations

from collections import Counter
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from simulation.halt_worker import STEPS, Page, Store, Worker
from simulation.interleaving import Stage

from ftrain.link import Halted
from ftrain_launcher.from_agent import Held, RankHalted
from ftrain_launcher.job.events import Send
from ftrain_launcher.job.halting import Halting
from ftrain_launcher.job.membership import NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.ranks import Ranks
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.node.halt import NodeHalt
from ftrain_launcher.to_agent import GoOn, HaltAfter, Hold, ToAgent
from ftrain_snapshot.status import Levels
from ftrain_snapshot.words import SnapshotId


class Job:
    """One generation in training, and what wants to halt it."""

    def __init__(self, seed: int, folder: Path, step_seconds: float | None = None) -> None:
        self.stage = Stage(seed)
        self.origin, self.elastic = None, False
        self.dice = dice = self.stage.random
        self.nodes, self.lanes = dice.choice([1, 2, 2, 3]), dice.choice([1, 2])
        self.accumulate, self.every = dice.choice([1, 1, 4, 1000]), dice.choice([1, 7, 7, 1000])
        self.step_seconds = step_seconds or dice.choice([2e-5, 1e-3, 5e-3])
        self.late_seconds = dice.choice([1e-4, 1e-3, 0.02, 0.15])
        """How late messages may be."""
        ranks = self.nodes * self.lanes
        places = [(dice.randrange(ranks), dice.randrange(STEPS)) for _ in range(4)]
        self.evaluates = places[0] if dice.random() < 0.3 else None
        self.evaluation_seconds = dice.choice([0.05, 0.4, 1.0])
        self.unsound = places[1:] if dice.random() < 0.3 else []
        self.faulty_lines = dice.random() < 0.3
        self.wanted_from = dice.uniform(0.0, 2.0 * self.step_seconds * STEPS * 0.7)
        self.wanted_for = dice.choice([0.0, 0.003, 0.2]) if dice.random() < 0.3 else 100.0
        self.store, self.pages = Store(self.stage), []
        for node in range(self.nodes):
            place = folder / f"{seed}-{node}"
            place.mkdir()
            self.pages.append(Page(self, place))
        self._job = SimpleNamespace(generation=1)
        self.workers = [Worker(self, rank) for rank in range(ranks)]
        for worker in self.workers:
            worker._job_generation = 1
        self._met: Counter[int] = Counter()
        self._sealed: Counter[SnapshotId] = Counter()
        self._given_up: set[SnapshotId] = set()
        self._ticket, self._slot, self._opens_at = 1, 0, 0.0
        self.levels = Levels()
        self._has_news = True
        self._make_controller()

    # ---- what the ranks share

    @property
    def generation(self) -> int:
        """As `JobEnvironment` has it."""
        return 1

    def meet(self, step: int) -> None:
        """A collective."""
        self._met[step] += 1
        self.stage.wait(lambda: 0.0 if self._met[step] >= len(self.workers) else inf)

    def gate(self) -> tuple[int, int]:
        """As the page has it."""
        self.stage.switch()
        return (self._ticket, self._slot) if self.stage.now >= self._opens_at else (self._ticket, -1)

    def seal(self, snapshot: SnapshotId) -> None:
        self._sealed[snapshot] += 1
        if self._sealed[snapshot] == len(self.workers) and snapshot not in self._given_up:
            self.levels = Levels(sealed=snapshot.version, protected=snapshot.version)
            self._next_ticket()
            self._has_news = True

    def give_up(self, snapshot: SnapshotId) -> None:
        if snapshot not in self._given_up:
            self._given_up.add(snapshot)
            self._next_ticket()

    def _next_ticket(self) -> None:
        self._ticket, self._slot = self._ticket + 1, (self._slot + 1) % 3
        self._opens_at = self.stage.now + self.dice.choice([0.0, 0.002, 0.002, 0.3])

    # ---- the controller and the agents

    def _make_controller(self) -> None:
        self.orders, roster = Orders(), Roster(self.nodes, self.nodes)
        for node in range(self.nodes):
            roster.move(roster.add(f"node-{node}"), NodeState.IDLE)
        roster.fill()
        self.roster, self.halting = roster, Halting(roster, self.orders)
        ranks = Ranks([f"node-{node}" for node in range(self.nodes)], self.lanes)
        for rank in ranks.by_number.values():
            ranks.step(rank, 0.0)
        self.formed: Any = SimpleNamespace(number=1, parity=1, ranks=ranks, levels=self.levels)
        self.form: Any = SimpleNamespace(work=SimpleNamespace(nproc_per_node=self.lanes))
        self.halted = False
        self.given_up = 0
        self._to_agents: list[list[tuple[float, ToAgent]]] = [[] for _ in range(self.nodes)]
        self._to_controller: list[tuple[float, Held | RankHalted]] = []
        self.stage.add("controller", self._control)
        for node in range(self.nodes):
            self.stage.add(f"agent {node}", lambda node=node: self._serve(node))
        for worker in self.workers:
            self.stage.add(f"rank {worker._rank}", worker.train)

    def _later(self, line: list) -> float:
        """A line keeps its order."""
        return max(line[-1][0] if line else 0.0, self.stage.now + self.dice.uniform(0.0, self.late_seconds))

    def tell(self, node: int, rank: int, message: Halted) -> None:
        told = RankHalted(f"node-{node}", 1, rank, message.step, message.sealed, self.stage.now)
        self._to_controller.append((self._later(self._to_controller), told))

    @property
    def over(self) -> bool:
        return self.halted or all(worker.ended for worker in self.workers)

    def _control(self) -> None:
        stage, begins = self.stage, self.stage.now + self.wanted_from
        ends = begins + self.wanted_for
        while not self.over:
            self._has_news = False
            while self._to_controller and self._to_controller[0][0] <= stage.now:
                self.halting.take(self._to_controller.pop(0)[1], stage.now)
            self.formed.levels = self.levels
            for worker in self.workers:
                if worker.ended:
                    self.formed.ranks.finish(self.formed.ranks.by_number[worker._rank])
            if begins <= stage.now < ends:
                self.halted = self.halting.ready(self.formed, stage.now)
            else:
                self.halting.release()
            if self.faulty_lines and self.dice.random() < 0.02:
                self.halting.rejoined(self.roster.nodes[f"node-{self.dice.randrange(self.nodes)}"])
            for command in self.orders.take():
                if isinstance(command, Send):
                    line = self._to_agents[int(command.node.removeprefix("node-"))]
                    line.append((self._later(line), command.message))
                else:
                    self.given_up += 1
            times = [t for t in (begins, ends, self.halting.deadline) if t is not None and t > stage.now]
            stage.wait(lambda times=times: 0.0 if self._has_news else min([*times, *self._comes()], default=inf))

    def _comes(self) -> list[float]:
        """When the controller hears something."""
        return [self._to_controller[0][0]] if self._to_controller else []

    def _serve(self, node: int) -> None:
        agent = NodeHalt.__new__(NodeHalt)
        agent._node, agent._page = f"node-{node}", self.pages[node]
        line = self._to_agents[node]
        while not self.over:
            while line and line[0][0] <= self.stage.now:
                match line.pop(0)[1]:
                    case Hold() as message:
                        self._answer(agent.hold(message, self.form))
                    case HaltAfter() as message:
                        agent.halt_after(message)
                    case GoOn() as message:
                        agent.go_on(message)
            self.stage.wait(lambda: line[0][0] if line else 0.0 if self.over else inf)

    def _answer(self, hold: Any) -> None:
        try:
            hold.send(None)
        except StopIteration as end:
            if end.value is not None:
                self._to_controller.append((self._later(self._to_controller), end.value))

"""What breaks, and when: a plan is plain data, drawn from the seed; `Faults` carries it out.

Beside the faults at their times there is a probability with which one strikes just while a generation is being
formed, since that is where mistakes hide. A gentle plan loses no second node before the first is made good.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec
from simulation.machines import Machine, Worker

from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_launcher.engine_messages import FlushJob, HostLeaves
from ftrain_launcher.from_agent import Trouble
from ftrain_launcher.job.events import CordonNode, Diagnosed, JobConfig, Leave, UncordonNode
from ftrain_launcher.to_agent import Form, Stop, ToAgent
from ftrain_launcher.work import Durable, Work

if TYPE_CHECKING:
    from simulation.cluster import Cluster

T = TypeVar("T")
KINDS = (
    "kill worker",
    "kill worker",
    "kill node",
    "kill node",
    "kill two nodes",
    "kill agent",
    "kill agent for long",
    "cut line",
    "kill daemon",
    "kill store",
    "kill writer",
    "hang writer",
    "kill controller",
    "kill controller between journal and sends",
    "do not start store",
    "do not form",
    "do not stop in time",
    "do not start node",
    "lose spare",
)
VERDICTS = ("hang", "hang", "communication hang", "link", "mismatch", "late mismatch", "slow", "guess", "divergence")
OPERATORS = ("cordon", "cordon now", "drain", "drain", "uncordon", "uncordon by force")
FLUSH_SECONDS = 60.0
_LOSE_A_NODE = ("kill node", "kill two nodes", "kill agent for long", "do not stop in time")


DURABLE = Durable(url="storage", every=7, write_timeout_seconds=5.0)


class Fault(msgspec.Struct, frozen=True):
    """One thing that breaks."""

    at: float
    """Seconds after the job's start."""
    kind: str
    victim: float
    """Which of those there are: 0 to 1."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A job and what befalls it."""

    config: JobConfig
    steps: int
    faults: tuple[Fault, ...] = ()
    while_forming: float = 0.0
    """Probability of one more fault at each message of a formation."""
    while_forming_max: int = 0
    gentle: bool = False
    """Never lose a node before the last lost one is made good."""
    protection_ends_with_stop: bool = True
    """Daemons store no parity after they have said what they hold (they may, but then nobody knows of it)."""
    undescribed_steps: int = 0
    """No other number of ranks can resume what the job captures of its first steps."""
    program_error_step: int | None = None
    program_error_rank: int = 0
    domains: tuple[str, ...] = ("",)
    """Failure domains of which each host, or emulated node, is in one."""
    recovery_seconds_max: float = 300.0
    """By then after the last fault the job must have ended."""

    @classmethod
    def draw(cls, dice: random.Random) -> Plan:
        """A plan from the seed."""
        nodes = dice.choice((1, 2, 3, 4, 4, 5, 9))
        parity = 0 if nodes == 1 else dice.choice((1, 1, 1, 1, 2)) if nodes > 2 else 1
        gentle = dice.random() < 0.7
        steps = dice.choice((5, 20, 40, 60))
        count = dice.choice((1, 2, 4, 6, 8, 12))
        return (
            cls(
                config=JobConfig(
                    work=Work(
                        job="simulated",
                        argv=("train.py",),
                        folder="/",
                        log_folder="/",
                        nproc_per_node=dice.choice((1, 1, 2)),
                        snapshot_every=1,
                        parity=parity,
                        max_restarts=1000,
                        durable=dice.choice((None, None, DURABLE)),
                    ),
                    nodes=nodes,
                    spares=dice.choice((0, 1, 1, 2)),
                    agent_grace_seconds=2.0,
                    stop_timeout_seconds=3.0,
                    start_timeout_seconds=6.0,
                    shutdown_grace_seconds=1.0,
                ),
                steps=steps,
                faults=tuple(Fault(dice.uniform(0.0, 10.0), dice.choice(KINDS), dice.random()) for _ in range(count)),
                while_forming=dice.choice((0.0, 0.05, 0.3)),
                while_forming_max=dice.choice((1, 3, 6)),
                gentle=gentle,
                protection_ends_with_stop=dice.random() < 0.8,
                program_error_step=dice.randrange(steps) if dice.random() < 0.1 else None,
                program_error_rank=dice.randrange(8),
                domains=dice.choice((("",), ("",), ("a", "b", "c", "d", "e", "f", "g", "h"), ("a", "b", "c"))),
            )
            .over_hosts(hosts=dice.random() < 0.5)
            .watched(dice)
        )

    def watched(self, dice: random.Random) -> Plan:
        """The same with a detector, that may be wrong, and with operators."""
        kinds = dice.choice(((), VERDICTS, OPERATORS, VERDICTS + OPERATORS))
        count = dice.choice((1, 4, 10)) if kinds else 0
        more = tuple(Fault(dice.uniform(2.0, 15.0), dice.choice(kinds), dice.random()) for _ in range(count))
        config = msgspec.structs.replace(self.config, isolate_slow=dice.random() < 0.5, preflight=dice.random() < 0.3)
        return msgspec.structs.replace(self, config=config, faults=self.faults + more)

    def over_hosts(self, *, hosts: bool) -> Plan:
        """The same over real hosts, which come by themselves."""
        return msgspec.structs.replace(self, config=msgspec.structs.replace(self.config, hosts=hosts))


class Faults:
    """Carries out a plan, as far as there still is something to break."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.world, self.plan = cluster, cluster.world, cluster.plan
        self.over_by = self.world.now
        self.done: list[tuple[float, str]] = []
        self._store_fails = self._form_fails = self._mismatches = 0
        self._slow_stops: set[str] = set()
        self._slow_until = 0.0
        self._node_starts: list[str] = []
        self._while_forming_left = self.plan.while_forming_max

    def begin(self) -> None:
        for fault in self.plan.faults:
            self._plan(fault)
        self.world.at(self.over_by + 5.0, self._let_all_in)

    def _let_all_in(self) -> None:
        """No operator leaves a node cordoned that the job cannot go on without."""
        for node in list(self.cluster.coordinator.nodes.values()):
            if node.cordon is not None and not node.gone:
                self.cluster.shell.submit(UncordonNode(node.name, force=True))
        if self.cluster.ended is None:
            self.world.after(5.0, self._let_all_in)

    def _plan(self, fault: Fault) -> None:
        self.over_by = max(self.over_by, self.world.now + fault.at)
        self.world.after(fault.at, self._strike, fault)

    def saw(self, message: ToAgent) -> None:
        """A message of the coordinator goes out: the moment for a fault while forming."""
        if isinstance(message, Stop | Form) and self._while_forming_left and self.world.chance(self.plan.while_forming):
            self._while_forming_left -= 1
            kind = self.world.random.choice(KINDS)
            self._plan(Fault(self.world.between(0.0, 0.4), kind, self.world.random.random()))

    # ---- asked by those that may fail

    def store_starts(self) -> bool:
        self._store_fails -= 1
        return self._store_fails < 0

    def forms(self) -> bool:
        self._form_fails -= 1
        return self._form_fails < 0

    def stop_seconds(self, machine: Machine) -> float:
        if machine.name in self._slow_stops:
            self._slow_stops.discard(machine.name)
            seconds = self.world.between(2.0, 6.0)
            self._slow_until = max(self._slow_until, self.world.now + seconds)
            return seconds
        return self.world.between(0.01, 0.2)

    def node_start(self) -> str:
        return self._node_starts.pop() if self._node_starts else "starts"

    # ---- what breaks

    def _strike(self, fault: Fault) -> None:
        if self.cluster.ended is not None:
            return
        if fault.kind in _LOSE_A_NODE and self.plan.gentle and not self._a_node_may_be_lost():
            return
        if self._break(fault.kind, fault.victim):
            self.done.append((self.world.now, fault.kind))

    def _a_node_may_be_lost(self) -> bool:
        """Everything is whole, and no other loss is on its way."""
        checkers, parity = self.cluster.checkers, self.cluster.config.work.parity
        machines = [m for m in self.cluster.machines.values() if m.alive]
        settled = all(m.agent is not None for m in machines) and self._slow_until < self.world.now
        return parity > 0 and settled and not self._slow_stops and checkers.is_whole()

    def _break(self, kind: str, victim: float) -> bool:
        cluster = self.cluster
        alive = [m for m in cluster.machines.values() if m.alive]
        spares = [m for m in alive if m.name not in cluster.coordinator.positions]
        members = [m for m in alive if m.name in cluster.coordinator.positions]
        workers = [w for m in members for w in m.workers.values() if w.alive]
        agents = [m for m in alive if m.agent is not None]

        match kind:
            case "kill worker" if worker := _one(workers, victim):
                worker.end(signal=9)
            case "kill node" if machine := _one(members, victim):
                machine.die()
                cluster.engine.lost(machine.name)
            case "kill two nodes" if len(members) > 1 and not self.plan.gentle:
                for machine in (members[int(victim * len(members))], members[int(victim * len(members)) - 1]):
                    machine.die()
                    cluster.engine.lost(machine.name)
            case "lose spare" if machine := _one(spares, victim):
                machine.die()
                cluster.engine.lost(machine.name)
            case "kill agent" if machine := _one(agents, victim):
                self._kill_agent(machine, self.world.between(0.1, 1.0))
            case "kill agent for long" if machine := _one(agents, victim):
                self._kill_agent(machine, self.world.between(1.0, 5.0))
            case "cut line" if machine := _one(agents, victim):
                assert machine.agent is not None
                if machine.agent.line is not None:
                    machine.agent.line.cut()
            case "kill daemon" if machine := _one(members, victim):
                self._kill_daemon(machine)
            case "kill store" if members:
                self._kill_store(members[0])
            case "kill controller":
                cluster.shell.crash()
            case "kill controller between journal and sends":
                cluster.shell.dies_after_commands = int(victim * 4)
            case "kill writer" if machine := _one([m for m in members if m.writer is not None], victim):
                machine.writer.end("killed")
            case "hang writer" if machine := _one([m for m in members if m.writer is not None], victim):
                machine.writer.hangs = True
            case "flip" if held := {s for m in members for s in m.memory}:
                cluster.doubtful.add(max(held))
            case "do not start store":
                self._store_fails = max(self._store_fails, 0) + 1
            case "do not form":
                self._form_fails = max(self._form_fails, 0) + 1
            case "do not stop in time" if machine := _one(members, victim):
                self._slow_stops.add(machine.name)
            case _ if kind in VERDICTS:
                return self._diagnose(kind, _one(workers, victim))
            case _ if kind in OPERATORS:
                return self._operate(kind, _one(alive, victim))
            case "flush" if not cluster.shell.up:  # the launcher says it again
                self._plan(Fault(0.5, kind, victim))
                return False
            case "flush":
                cluster.shell.submit(FlushJob("flush", FLUSH_SECONDS))
            case "host leaves" if (machine := _one(alive, victim)) and cluster.shell.up:
                cluster.shell.submit(HostLeaves(machine.name, "it is switched off"))
            case "do not start node":
                self._node_starts = ["fails" if victim < 0.5 else "never comes"]
            case _:
                return False
        return True

    def _diagnose(self, kind: str, worker: Worker | None) -> bool:
        """The detector says something of a worker that may be quite well."""
        shell = self.cluster.shell
        if worker is None or not shell.up:
            return False
        node, generation = worker.machine.name, worker.generation
        found = {"generation": generation, "confidence": 0.9, "sentence": kind, "step": worker.step}
        match kind:
            case "communication hang":
                verdict = Verdict(kind=Kind.COMMUNICATION_HANG, nodes=(node,), **found)
            case "link":
                verdict = Verdict(
                    kind=Kind.COMMUNICATION_HANG, links=(Link(0, self.cluster.config.nodes - 1),), **found
                )
            case "mismatch" | "late mismatch":
                self._mismatches += 1
                found |= {"generation": generation - (kind != "mismatch"), "step": 1000 + self._mismatches}
                verdict = Verdict(kind=Kind.MISMATCH, ranks=(worker.rank,), **found)
            case "guess":
                verdict = Verdict(kind=Kind.HANG, ranks=(worker.rank,), **(found | {"confidence": 0.4}))
            case _:
                verdict = Verdict(kind=Kind(kind), ranks=(worker.rank,), **found)
        shell.submit(Diagnosed(verdict))
        return True

    def _operate(self, kind: str, machine: Machine | None) -> bool:
        shell = self.cluster.shell
        if machine is None or not shell.up:
            return False
        if kind.startswith("uncordon"):
            shell.submit(UncordonNode(machine.name, force=kind != "uncordon"))
        else:
            leave = {"cordon": Leave.AT_NEXT_FAULT, "cordon now": Leave.NOW, "drain": Leave.SOON}[kind]
            shell.submit(CordonNode(machine.name, kind, leave))
        return True

    def _kill_agent(self, machine: Machine, seconds: float) -> None:
        machine.kill_agent()
        if self.world.chance(0.3):
            machine.store = (0, 0)
        self.world.after(seconds, machine.start_agent)

    def _kill_daemon(self, machine: Machine) -> None:
        """It is started again, finds its files, and all go on protecting with the next snapshot."""
        machine.daemon_up = False
        if machine.form is not None:
            self.cluster.training_of(machine.form).abandon()
            if machine.position == 0:
                self.cluster.training_of(machine.form).forget_pin()
        self.world.after(self.world.between(0.1, 0.5), self._daemon_is_back, machine)

    def _daemon_is_back(self, machine: Machine) -> None:
        machine.daemon_up = True
        machine.tell(Trouble(machine.name, machine.generation, "daemon_exit", "signal 9"))

    def _kill_store(self, machine: Machine) -> None:
        generation, port = machine.store
        machine.store = (0, 0)
        if port and (machine.generation == generation or self.world.chance(0.5)):
            machine.tell(Trouble(machine.name, generation, "store_lost", "signal 9"), ("trouble",))


def _one(of: Sequence[T], victim: float) -> T | None:
    return of[int(victim * len(of))] if of else None

"""A simulated job over hosts with several candidates for its controller, in a network that falls apart and heals.

Candidates run the production coordinator, election, fence and journal; agents keep the agent's contract and promise
terms. Nothing is shared: whoever is cut off decides by what it knows. `Truth` watches what really runs.
"""

from __future__ import annotations

import random

from simulation.failover_agent import Agent
from simulation.failover_candidate import Candidate, rebuilt
from simulation.world import World

from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    HostCame,
    JobConfig,
)
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.to_agent import Form
from ftrain_launcher.work import Work


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

"""Pure: what is known of a job, and the parts that know it; what follows from an event is the coordinator's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftrain_launcher.detect.patience import Patience
from ftrain_launcher.job.candidates import Candidates
from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.ending import Ending
from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.job.fencing import Fence, Nodes
from ftrain_launcher.job.first_snapshot import FirstSnapshot
from ftrain_launcher.job.flushing import Flushing
from ftrain_launcher.job.forming import Forming
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.growth import Growth
from ftrain_launcher.job.halting import Halting
from ftrain_launcher.job.history import History
from ftrain_launcher.job.incidents import Incident
from ftrain_launcher.job.membership import Node, Phase, Rank
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.preflight import Preflight
from ftrain_launcher.job.quarantine import Quarantine
from ftrain_launcher.job.recruiting import Recruiting
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.job.running import Running
from ftrain_launcher.job.worlds import Worlds
from ftrain_snapshot.placement import Groups
from ftrain_snapshot.status import Levels
from ftrain_snapshot.words import SnapshotId


class JobState:
    """One job's, at one moment; all that is public is to be read, by whoever shows it to people."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.phase = Phase.GATHERING
        self.durable = DurableTier(config.work.durable)
        """What is written to storage."""
        self._formed = Generation()
        """The newest generation that was formed."""
        self._orders = Orders()
        self._roster = Roster(config.nodes, config.least)
        self._history = History(config.work)
        self._recruiting = Recruiting(config, self._roster, self._orders)
        self._preflight = Preflight(config, self._roster, self._recruiting, self._orders)
        self.quarantine = Quarantine(config, self._roster, self._recruiting, self._orders, self._history)
        """Which nodes are to be given no ranks."""
        self.halting = Halting(self._roster, self._orders)
        """The ranks' stop at the end of a step, for changes that are planned."""
        self.flushing = Flushing(config, self._roster, self._orders, self.durable, self.halting)
        """The job's end at the end of a step, with its state on storage."""
        self._growth = Growth(self._roster)
        self._first_snapshot = FirstSnapshot(self._roster)
        parts = (self._orders, self.durable, self._history, self.quarantine)
        self._running = Running(config, self._roster, self._recruiting, *parts)
        self.fence = Fence(active=bool(config.candidates))
        """Of whom a majority is needed, where another host may run a controller as well."""
        self._forming = Forming(config, self._roster, *parts, self.fence)
        forming = (self._history, self._forming)
        self._candidates = Candidates(config, self._roster, self._orders, *forming, self.fence)
        self._ending = Ending(config, self._roster, self._orders)
        self.nodes: Mapping[str, Node] = self._roster.nodes
        """All nodes by name."""
        self.positions: Sequence[str | None] = self._roster.positions
        """The node that holds each position; None: vacant."""
        self.incidents: Sequence[Incident] = self._history.log.entries
        """The newest incidents, oldest first."""

    @property
    def patience(self) -> Patience:
        """Whom the detector gives more time, from generation to generation."""
        return self._history.patience

    @property
    def incidents_total(self) -> int:
        """How many incidents there were."""
        return self._history.log.total

    @property
    def term(self) -> int:
        """Which controller of the job this is."""
        return self._candidates.term

    @property
    def quorums(self) -> list[Nodes]:
        """The generations of whose nodes most are needed for the next one; empty: none was formed."""
        return self.fence.needed(self._formed)

    @property
    def generation(self) -> int:
        """The newest generation that was announced."""
        return self._forming.number

    @property
    def groups(self) -> Groups:
        """The positions that are coded together; empty until the first generation is formed."""
        return self._forming.groups

    @property
    def worlds(self) -> Worlds:
        """Of how many nodes the job was, is, and how they are coded."""
        return self._forming.worlds

    @property
    def parity(self) -> int:
        """Lost nodes of a group that are survived: as asked for, or as many as the newest generation can carry."""
        return self._formed.parity if self.formed else self.config.work.parity

    @property
    def size_reason(self) -> str:
        """Why not every number of nodes that was asked for will do; empty: each will."""
        return self._roster.sizes.reason

    @property
    def formed(self) -> int:
        """The newest generation that was formed: ``ranks``, ``restore`` and ``levels`` are of this one."""
        return self._formed.number

    @property
    def restore(self) -> SnapshotId | None:
        """The snapshot that it started from."""
        return self._formed.start.restore

    def reads(self, node: str) -> bool:
        """Whether it may yet have to be read again what a node holds of the world before."""
        return self._formed.reads(node)

    @property
    def levels(self) -> Levels:
        """What its gate reported last."""
        return self._formed.levels

    @property
    def ranks(self) -> dict[int, Rank]:
        """Its ranks."""
        return self._formed.ranks.by_number

    def next_deadline(self) -> float | None:
        """When `Tick` is due, if nothing else happens before."""
        deadlines = (
            self._roster.next_deadline(),
            self._recruiting.deadline,
            self._recruiting.last_call,
            self._forming.deadline if self.phase is Phase.STOPPING else None,
            self._growth.deadline,
            self._first_snapshot.deadline,
            self.durable.next_deadline(),
            self.halting.deadline,
            None if self.phase in (Phase.ENDING, Phase.ENDED) else self.flushing.next_deadline(),
            self._ending.deadline,
        )
        return min((d for d in deadlines if d is not None), default=None)

    @property
    def exit_code(self) -> int:
        """How the job ends."""
        return self._ending.exit_code

    @property
    def exit_message(self) -> str:
        """Why it ends; empty: it does not."""
        return self._ending.message

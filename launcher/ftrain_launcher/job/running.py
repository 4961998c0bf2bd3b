"""What is heard of the generation that runs: its workers, its gate, and those who write it to storage.

Its agents go on telling of it while it is being stopped for the next one: then only what broke still counts.
"""

from __future__ import annotations

from math import inf
from typing import assert_never

from ftrain_launcher.detect.patience import WentOn
from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.from_agent import (
    ArenaShort,
    DurableEnded,
    Join,
    RankRestored,
    RankStepped,
    StateCertified,
    StateDescribed,
    StateUndescribed,
    WorkerExit,
)
from ftrain_launcher.job.causes import MISFIT, Sign, describe, sign_of_exit, sign_of_verdict
from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.events import Diagnosed, JobConfig, Progress, QuickAgain
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.history import History
from ftrain_launcher.job.membership import Node
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_USAGE, Action, Response, respond
from ftrain_launcher.job.quarantine import Quarantine
from ftrain_launcher.job.recruiting import Recruiting
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.to_agent import Unpin, WriteDurable
from ftrain_snapshot.status import Levels

Report = (
    WorkerExit
    | RankRestored
    | RankStepped
    | StateCertified
    | StateUndescribed
    | StateDescribed
    | ArenaShort
    | Progress
    | DurableEnded
    | Diagnosed
    | QuickAgain
    | WentOn
)
UNPROTECTED_SECONDS = 60.0
"""After the first snapshot was sealed; protecting it takes seconds."""
_UNDESCRIBED = "no other number of ranks can resume the job's state"
_FINISHED = Action(False, "training finished")


class Running:
    """One job's; all that it uses is the coordinator's."""

    def __init__(
        self,
        config: JobConfig,
        roster: Roster,
        recruiting: Recruiting,
        orders: Orders,
        durable: DurableTier,
        history: History,
        quarantine: Quarantine,
    ) -> None:
        self._config = config
        self._roster = roster
        self._recruiting = recruiting
        self._orders = orders
        self._durable = durable
        self._history = history
        self._quarantine = quarantine

    def take(self, generation: Generation, report: Report, now: float, *, stopping: bool) -> Sign | Action | None:
        """Take in what concerns this generation; what broke, or how the job ends.

        ``stopping``: the next one is announced.
        """
        match report:
            case WorkerExit():
                return self._exit(generation, report, now, stopping=stopping)
            case ArenaShort():
                reason = _too_little_memory(generation, report)
                if not report.goes_on:
                    return Action(False, reason, EXIT_USAGE)
                self._orders.announce(
                    [f"warning: {reason}. Until then no step is safe after that of the last snapshot"]
                )
            case Diagnosed():
                return self._diagnose(generation, report, now, stopping=stopping)
            case Progress():
                if report.sealed is not None:
                    generation.levels = Levels(sealed=report.sealed, protected=report.protected)
                    if generation.unprotected_since is None:
                        generation.unprotected_since = now
                if stopping:
                    return None
                self._set_size_free(generation)
                return self._write_what_is_due(report, now)
            case RankRestored() | RankStepped():
                if not stopping:
                    self._advance(generation, report, now)
            case StateCertified():
                self._history.certified(report.certificate)
            case StateUndescribed():
                generation.described.pop(report.node, None)
                self._keep_size(generation, report.reason)
            case StateDescribed():
                generation.described[report.node] = report.version
            case QuickAgain():
                rank = generation.ranks.by_number.get(report.rank)
                if rank is not None:
                    self._orders.announce(self._history.quick_again(rank, report.step))
            case WentOn():
                self._orders.announce(self._history.went_on(report))
            case DurableEnded():
                if not stopping:
                    self._tell_of_write(self._durable.end(report, now))
            case _:
                assert_never(report)
        return None

    def readopt(self, generation: Generation, node: Node, position: int, join: Join, now: float) -> Sign | None:
        """A member is back while the job runs. If it runs what it should, nothing has broken."""
        missing = generation.lacks(position, join)
        if missing and not generation.is_unknown_to(position, join):  # Nobody is left to tell what became of them.
            reason = f"without rank {', '.join(map(str, missing))}"
            return Sign(kind="agent_lost", node=node.name, time=now, reason=reason)
        if missing:
            self._orders.send(node, generation.form_for(position))
        if self._durable.writing is not None:
            self._orders.send(node, WriteDurable(self._durable.writing))
        return None

    def tick(self, generation: Generation, now: float) -> Action | None:
        """A deadline of the durable tier may have come; how the job ends. Nothing may be protected for too long."""
        self._tell_of_write(self._durable.tick(now))
        self._warn_of_exposure(generation, now)
        if self._durable.is_overdue(now):
            return Action(False, "training finished (whether its last checkpoint is to be written, nobody said)")
        return None

    def _warn_of_exposure(self, generation: Generation, now: float) -> None:
        since = generation.unprotected_since
        if since is None or not generation.parity or generation.levels.protected is not None:
            return
        if now - since >= UNPROTECTED_SECONDS:
            generation.unprotected_since = inf
            self._orders.announce(
                [
                    f"warning: no snapshot has been protected in {UNPROTECTED_SECONDS:g} s, so a lost node would cost "
                    f"all (step {generation.levels.sealed} is sealed): can the nodes' daemons reach each other? Their "
                    "logs say"
                ]
            )

    # ---- verdicts

    def _diagnose(self, generation: Generation, event: Diagnosed, now: float, *, stopping: bool) -> Sign | None:
        verdict = event.verdict
        if self._durable.finishing or generation.ranks.all_finished:
            return None
        sign = sign_of_verdict(verdict, generation.ranks.nodes, self._config.work.nproc_per_node, now)
        match respond(verdict, self._config.detect):
            case Response.RESTART:
                return sign
            case Response.WARN if not stopping:
                complaint, news = self._history.complain(sign, generation.number)
                self._orders.announce(news)
                node = self._roster.nodes.get(sign.node)
                if self._config.isolate_slow and verdict.kind is Kind.SLOW and complaint.stays and node is not None:
                    self._quarantine.take_out(node, describe(sign), complaint.incident, now)
        return None

    def explain(self, generation: Generation, past: Diagnosed, now: float) -> Action | None:
        """What the detector says of the generation before this one, if that is why it ended; how the job ends."""
        verdict = past.verdict
        if verdict.kind is not Kind.MISMATCH or respond(verdict, self._config.detect) is not Response.RESTART:
            return None
        sign = sign_of_verdict(verdict, generation.before, self._config.work.nproc_per_node, now)
        judgement = self._history.amend(sign, verdict.generation)
        self._orders.announce(judgement.news)
        return None if judgement.action.resume else judgement.action

    # ---- workers

    def _exit(self, generation: Generation, event: WorkerExit, now: float, *, stopping: bool) -> Sign | Action | None:
        ranks, rank = generation.ranks, generation.ranks.by_number.get(event.rank)
        if rank is None or rank.node != event.node or rank.finished:
            return None
        if not event.finished and (event.code != 0 or event.failure is not None):
            return self._misfit(event, now) or sign_of_exit(event, now)
        ended = sign_of_exit(event, now)
        if stopping:
            # What others raised, whom it left alone, may have been heard before; and that they wait for it.
            return None if event.finished and not self._history.may_miss(event.rank) else ended
        generation.ended.append(ended)
        if ranks.finish(rank):
            self._settle(generation, now)
        if ranks.all_finished and not self._durable.finish(now):
            return _FINISHED
        self._tell_of_write(None)
        return None

    def _misfit(self, event: WorkerExit, now: float) -> Sign | None:
        """The script has no mesh or no samples for so many ranks, but the job may have another number of them."""
        misfit = event.failure.misfit if event.failure is not None else None
        if misfit is None or not self._roster.sizes.strike_off(misfit, self._config.work.nproc_per_node):
            return None
        return Sign(kind=MISFIT, node=event.node, time=now, reason=misfit.reason)

    def _keep_size(self, generation: Generation, reason: str) -> None:
        """What it captures is for so many nodes only. The first rank to say so stands for all."""
        nodes = len(generation.ranks.nodes)
        if self._config.elastic and self._roster.sizes.keep(nodes, _UNDESCRIBED):
            keeps = f"warning: the job stays at {nodes} nodes, and waits for another one where one is lost"
            self._orders.announce([f"{keeps}: {_UNDESCRIBED}: {reason}"])

    def _set_size_free(self, generation: Generation) -> None:
        """Once a snapshot is safe that others can resume. Whoever captures another kind says so before."""
        if self._roster.sizes.is_kept and generation.is_described:
            self._roster.sizes.set_free()
            since = f"since step {generation.safe} any can resume its state"
            self._orders.announce([f"the job may change its number of nodes again: {since}"])

    def _advance(self, generation: Generation, event: RankRestored | RankStepped, now: float) -> None:
        """A rank has its state back, or made its first step; perhaps it was the last one."""
        ranks, rank = generation.ranks, generation.ranks.by_number.get(event.rank)
        if rank is None:
            return
        if isinstance(event, RankStepped):
            if ranks.step(rank, event.time):
                self._settle(generation, now)
        elif ranks.restore(rank, event.time, event.read_bytes, event.kept_bytes):
            self._history.restored(ranks)

    def _settle(self, generation: Generation, now: float) -> None:
        """All ranks have made a step, or had none left to make."""
        self._orders.announce(self._history.settle(generation.ranks.stepped_at))
        self._recruiting.replace_spares(now)

    # ---- the durable tier

    def _write_what_is_due(self, progress: Progress, now: float) -> Action | None:
        self._tell_of_write(self._durable.report(progress, now))
        return _FINISHED if self._durable.is_settled(progress) else None

    def _tell_of_write(self, message: WriteDurable | Unpin | None) -> None:
        """To all members; and people, how it went."""
        if message is not None:
            for node in self._roster.members():
                self._orders.send(node, message)
        self._orders.announce(self._durable.take_news())


def _too_little_memory(generation: Generation, event: ArenaShort) -> str:
    needed, available = event.needed_bytes / 2**20, event.available_bytes / 2**20
    reason = (
        f"too little shared memory on {event.node}: the snapshots need {needed:,.0f} MiB, "
        f"{available:,.0f} MiB are free; make /dev/shm larger or give --arena-dir another tmpfs"
    )
    if (nodes := len(generation.ranks.nodes)) < len(generation.before):
        reason += f". {len(generation.before)} nodes needed less each than {nodes}: --nnodes could have a larger MIN"
    return reason

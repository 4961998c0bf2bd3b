"""The job's faults so far, and what follows from the latest one: it names the cause and asks the policy.

``judge`` may be called several times for one incident: a node may be lost after the others have said what they
hold, and that changes cause and start.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ftrain.link import Certified
from ftrain_launcher.detect.patience import Call, Patience, WentOn
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.job.causes import Sign, classify, describe, hanging
from ftrain_launcher.job.complaints import Complaint, Complaints
from ftrain_launcher.job.demotion import Demotion, demotion_of, doubt_of
from ftrain_launcher.job.formation import Start
from ftrain_launcher.job.incidents import Incident, IncidentLog
from ftrain_launcher.job.membership import Rank
from ftrain_launcher.job.policy import EXIT_LOST, Action, decide, give_up
from ftrain_launcher.job.ranks import Ranks
from ftrain_launcher.job.rungs import Rung
from ftrain_launcher.work import Work


class Judgement(msgspec.Struct, frozen=True):
    """What people are told, and whether the job goes on."""

    action: Action
    news: tuple[str, ...] = ()


class History:
    """Incidents, and how many of them followed each other without progress."""

    def __init__(self, work: Work) -> None:
        self.log = IncidentLog()
        self.complaints = Complaints(self.log)
        """What slows the job, and stops nobody."""
        self.patience = Patience(work.collective_timeout_seconds)
        """Whom the detector gives more time."""
        self._max_restarts, self._restarts_chosen = work.max_restarts, work.restarts_chosen
        self._faults_without_progress = 0
        self._refused: Certified | None = None
        """What could not be proved of the newest generation's state."""
        self._newest_version = -1
        """The newest version that any generation could start from: a newer one is progress."""

    def take(self, sign: Sign, generation: int, *, again: bool) -> None:
        """Something broke in ``generation``; ``again``: what follows is a new generation, not the one being formed."""
        self.log.take(sign, generation)
        self._faults_without_progress += again

    def recall(self, ended: Iterable[Sign]) -> None:
        """Who had ended before something broke, which had seemed in order until then."""
        if self.log.forming is not None:
            self.log.forming.signs.extend(ended)

    def may_miss(self, rank: int) -> bool:
        """Whether what broke is that others miss a peer, or wait for this rank."""
        signs = self.log.forming.signs if self.log.forming is not None else ()
        return rank in hanging(signs) or any(sign.misses_a_peer for sign in signs)

    def judge(self, start: Start, now: float) -> Judgement:
        """Everybody who is left has said what he holds and what broke: go on from ``start``, or end."""
        version = -1 if start.version is None else start.version
        if version > self._newest_version:
            self._newest_version = version
            self._faults_without_progress = min(self._faults_without_progress, 1)
        action, news = Action(True, ""), list[str]()
        incident = self.log.forming
        if incident is not None:
            action, news = self._judge_incident(incident, now)
        if action.resume and start.lost:
            action = Action(False, start.lost, EXIT_LOST)
        return Judgement(action, tuple(news))

    def _judge_incident(self, incident: Incident, now: float) -> tuple[Action, list[str]]:
        before = self.log.signature_before(incident)
        cause = classify(incident.signs)
        if incident.over and cause.kind == Kind.HANG:
            cause = msgspec.structs.replace(cause, blame=None)
        news = []
        if cause != incident.cause:
            news.append(f"incident {incident.number}: {cause.reason}")
            if cause.traceback and not (cause.signature and cause.signature == before):
                news.append(cause.traceback.rstrip())
        incident.cause, incident.timeline.decided = cause, now
        incident.refused, self._refused = self._refused or incident.refused, None
        before = "" if self._restarts_chosen and cause.step is None else before
        action = decide(cause, before, self._faults_without_progress, self._max_restarts)
        if action.resume and (hang := _hang_of(incident)) is not None:
            action = give_up(cause, self.patience.times_used_up(hang.ranks, _call(incident, hang))) or action
        if not action.resume:
            incident.decide(f"the job ends: {action.reason}")
        return action, news

    def amend(self, sign: Sign, generation: int) -> Judgement:
        """The detector names the cause of an incident after the job was formed again.

        A mismatch may show by an error at once, and be understood later; if it is not the first, that ends the job.
        """
        incident = self.log.of_generation(generation)
        if incident is None or incident.timeline.formed is None:
            return Judgement(Action(True, ""))
        formed_at, decided_at = incident.timeline.formed, incident.timeline.decided
        incident.add(sign)
        action, news = self._judge_incident(incident, sign.time)
        incident.timeline.formed, incident.timeline.decided = formed_at, decided_at
        return Judgement(action, tuple(news))

    def complain(self, sign: Sign, generation: int) -> tuple[Complaint, list[str]]:
        """The detector says something that stops nobody. What people are told, once for as long as it goes on."""
        complaint = self.complaints.take(sign, generation)
        return complaint, [f"{describe(sign)}; training goes on"] if complaint.is_new else []

    def quick_again(self, rank: Rank, step: int) -> list[str]:
        """A rank that was slow is so no more. What people are told, if they were told that it is slow."""
        complaint = self.complaints.about(Kind.SLOW, rank.node, rank.rank)
        if complaint is None:
            return []
        news = f"rank {rank.rank} on {rank.node} is as quick as its peers again, at step {step}"
        complaint.end(news)
        return [f"incident {complaint.incident.number}: {news}"]

    def went_on(self, event: WentOn) -> list[str]:
        """A rank went on by itself after as long a time as is called a hang. What people are told, once that is known
        to be no fault."""
        calls = self.patience.went_on(event)
        if calls is None:
            return []
        numbers = {call.incident for call in calls}
        if (now := self.log.forming) is not None and now.generation == event.generation and event.rank in self.suspects:
            numbers.add(now.number)  # it is being stopped for that
        found = [incident for incident in self.log.entries if incident.number in numbers]
        no_faults = sum(not incident.over for incident in found)
        self._faults_without_progress = max(0, self._faults_without_progress - no_faults)
        for incident in found:
            incident.acquit(f"rank {event.rank} went on by itself, after {event.seconds:.1f} s: it was no fault")
        called = f"{', '.join(f'incident {one.number}' for one in found)}: " if found else ""
        went_on = f"rank {event.rank} kept others waiting for {event.seconds:.1f} s and went on by itself"
        return [f"{called}{went_on}: so long a wait for it is no fault in this job from now on"]

    @property
    def demotions(self) -> list[Demotion]:
        """What the faults so far say is not to be started from."""
        found = (of(i.signs, i.generation) for i in self.log.entries for of in (demotion_of, doubt_of))
        return [d for d in found if d is not None]

    @property
    def suspects(self) -> tuple[int, ...]:
        """The ranks that the detector has named for what is being dealt with."""
        incident = self.log.forming
        verdicts = [] if incident is None else incident.verdicts
        return tuple(sorted({rank for verdict in verdicts for rank in verdict.ranks}))

    def resumed(self, start: Start, now: float, how: str, rung: Rung) -> None:
        """The next generation was formed from ``start``; ``how``: in words."""
        incident = self.log.forming
        if incident is not None:
            incident.decide(how)
            incident.rung = rung
            incident.timeline.formed = now
            incident.steps_lost = start.steps_lost
            incident.resumed_from = start.version
            incident.demoted, incident.doubtful = start.demoted, start.doubtful
            if (hang := _hang_of(incident)) is not None:
                self.patience.called(hang.ranks, _call(incident, hang))
                again = self.patience.after(hang.allowed_seconds)
                incident.decide(f"if it comes to that there again, {again:.1f} s are allowed: it may only be slow")
        self.patience.begin(start.version)

    def count(self, incidents: int) -> None:
        """So many there were already, though nothing else is known here of the newest: their numbers are taken."""
        self.log.total = max(self.log.total, incidents)

    def restored(self, ranks: Ranks) -> None:
        """All ranks have their state back."""
        incident = self.log.open
        if incident is not None:
            incident.timeline.restored = ranks.restored_at
            incident.ranks, incident.ranks_kept = len(ranks.by_number), ranks.kept
            incident.read_bytes = ranks.read_bytes

    def certified(self, certificate: Certified) -> None:
        """The state that was re-sharded is proved, or is not: then the next incident is about that."""
        if certificate.findings:
            self._refused = certificate
        elif self.log.open is not None:
            self.log.open.certificate = certificate

    def settle(self, first_step: float | None) -> list[str]:
        """All ranks have made a step, or had none left to make: the incident is over. What people are told."""
        incident = self.log.close(first_step=first_step)
        if incident is None or incident.seconds is None:
            return []
        again = f"training again after {incident.seconds:.2f} s, {incident.steps_lost} sealed steps lost"
        return [f"incident {incident.number}: {again}"]

    def take_harmless(self, sign: Sign, generation: int) -> list[str]:
        """Something broke that stops nobody. What people are told, once."""
        return [f"{describe(sign)}; training goes on"] if self.log.record_harmless(sign, generation) else []


def _hang_of(incident: Incident) -> Verdict | None:
    """The verdict that is its cause, if that is a matter of time."""
    if incident.cause is None or incident.cause.kind != Kind.HANG or incident.over:
        return None
    hangs = (v for v in incident.verdicts if v.kind is Kind.HANG and v.allowed_seconds)
    return next(hangs, None)


def _call(incident: Incident, hang: Verdict) -> Call:
    step = -1 if hang.step is None else hang.step
    return Call(incident.number, step, hang.allowed_seconds)

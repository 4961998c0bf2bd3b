"""What the detector says again and again while nothing breaks: one warning, for as long as it goes on."""

from __future__ import annotations

import msgspec

from ftrain_launcher.job.causes import Sign, Suspect
from ftrain_launcher.job.incidents import Incident, IncidentLog

GAP_SECONDS = 120.0
"""A verdict after so long a silence is a new complaint: what comes and goes does not stay."""
STAYS_SECONDS = 60.0
STAYS_COUNT = 3


class Complaint(msgspec.Struct):
    """One kind of verdict about the same suspects."""

    incident: Incident
    since: float
    last: float
    count: int = 0

    @property
    def is_new(self) -> bool:
        """People have not been told yet."""
        return self.count == 1

    @property
    def stays(self) -> bool:
        """It is no passing thing."""
        return self.count >= STAYS_COUNT and self.last - self.since >= STAYS_SECONDS

    def end(self, how: str) -> None:
        """It is over; if it comes back before long, people are told again, of the same incident."""
        self.count, self.incident.over = 0, how


class Complaints:
    """Those of one job that go on."""

    def __init__(self, log: IncidentLog) -> None:
        self._log = log
        self._open: dict[tuple[str, tuple[Suspect, ...]], Complaint] = {}

    def take(self, sign: Sign, generation: int) -> Complaint:
        """One more verdict."""
        self._open = {key: c for key, c in self._open.items() if sign.time - c.last <= GAP_SECONDS}
        key = (sign.kind, sign.suspects)
        complaint = self._open.get(key)
        if complaint is None:
            incident = self._log.append_harmless(sign, generation)
            complaint = self._open[key] = Complaint(incident, sign.time, sign.time)
        else:
            complaint.incident.add(sign)
            complaint.incident.over = ""
        if not complaint.count:
            complaint.since = sign.time
        complaint.last = sign.time
        complaint.count += 1
        return complaint

    def about(self, kind: str, node: str, rank: int) -> Complaint | None:
        """What is said of a rank just now."""
        for (said, suspects), complaint in self._open.items():
            if said == kind and complaint.count and any((s.node, s.rank) == (node, rank) for s in suspects):
                return complaint
        return None

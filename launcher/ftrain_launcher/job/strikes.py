"""Pure: what the incidents of the last hour say against each node. One that stands out is better replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from ftrain_launcher.job.causes import Blame
from ftrain_launcher.job.incidents import Incident

STRIKES_SECONDS = 3600.0
"""What is older counts no more."""


class Strike(msgspec.Struct, frozen=True):
    """One incident that was the fault of one machine."""

    blame: Blame
    step: int | None
    time: float


Strikes = Mapping[str, tuple[Strike, ...]]
"""By machine, oldest first."""


def strikes(incidents: Iterable[Incident], machines: Mapping[str, str], now: float) -> Strikes:
    """Those of the last hour. Of a hang that may be the fault of several machines nothing is said against any.

    ``machines`` tells where each node ran: a host may come back as another node.
    """
    found: dict[str, tuple[Strike, ...]] = {}
    for incident in incidents:
        cause = incident.cause
        if cause is None or cause.blame is None or now - incident.timeline.detected > STRIKES_SECONDS:
            continue
        suspects = dict.fromkeys(machines[node] for node in cause.nodes if node in machines)
        if cause.blame is Blame.HUNG and len(suspects) > 1:
            continue
        for machine in suspects:
            strike = Strike(cause.blame, cause.step, incident.timeline.detected)
            found[machine] = (*found.get(machine, ()), strike)
    return found

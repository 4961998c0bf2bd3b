"""What the controller may ask an agent beside everything else, and the answers: each pair shares a number.

Nothing of the job's state depends on these. An agent that does not answer has lost nothing but the question.
"""

from __future__ import annotations

import msgspec

from ftrain.health.words import Answer, Task
from ftrain_launcher.trace.records import NodeTrace
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LaneReport, LinkFigure

# ---- controller -> agent


class Verify(msgspec.Struct, frozen=True, tag="verify"):
    """Have the daemon read all that it stores, compare it with its checksums, and repair what is wrong."""

    request: int
    """Comes back in the answer."""


class Inspect(msgspec.Struct, frozen=True, tag="inspect"):
    """Look at these workers from outside: a verdict names them."""

    request: int
    """Comes back in the answer."""
    ranks: tuple[int, ...]


class Probe(msgspec.Struct, frozen=True, tag="probe", kw_only=True):
    """Have the daemon measure the links to these nodes, in a generation or not."""

    request: int
    """Comes back in the answer."""
    peers: tuple[Peer, ...]
    """Their positions come back in the figures."""
    count: int = 5
    """Round trips to each, all at once."""
    burst_bytes: int = 0
    """What to send to each for its bandwidth, to one after the other; 0: nothing."""
    bursts: int = 1
    """So many times; the best counts."""
    timeout_seconds: float = 1.0
    """For all round trips together, and for the bursts to each."""


class CheckHealth(msgspec.Struct, frozen=True, tag="check_health"):
    """Have the node's health process do this."""

    request: int
    """Comes back in the answer."""
    task: Task


class ClockWanted(msgspec.Struct, frozen=True, tag="clock_wanted"):
    """Say at once what the monotonic clock says."""

    request: int
    """Comes back in the answer."""


class TraceWanted(msgspec.Struct, frozen=True, tag="trace_wanted"):
    """Read whole records from the workers' rings."""

    request: int
    """Comes back in the answer."""
    steps: int
    """So many of the last ones of each rank."""
    records_max: int
    """Of each rank, the newest."""


Question = Verify | Inspect | Probe | CheckHealth | ClockWanted | TraceWanted

# ---- agent -> controller


class Verified(msgspec.Struct, frozen=True, tag="verified", kw_only=True):
    """Answer to Verify."""

    node: str
    request: int
    lanes: tuple[LaneReport, ...] = ()
    failure: str = ""
    """Why the node's daemon could not do it; empty: it did."""


class Finding(msgspec.Struct, frozen=True):
    """What an agent sees of a worker from outside."""

    rank: int
    process: str
    """Its state, in words."""
    stack: str = ""
    """Of all its Python threads."""
    no_stack: str = ""
    """Why there is none; empty: there is."""


class Inspected(msgspec.Struct, frozen=True, tag="inspected"):
    """Answer to Inspect."""

    node: str
    request: int
    findings: tuple[Finding, ...]


class Probed(msgspec.Struct, frozen=True, tag="probed", kw_only=True):
    """Answer to Probe."""

    node: str
    request: int
    figures: tuple[LinkFigure, ...] = ()
    """In the order of the request."""
    failure: str = ""
    """Why the node's daemon could not do it; empty: it did."""


class Health(msgspec.Struct, frozen=True, tag="health", kw_only=True):
    """Answer to CheckHealth."""

    node: str
    request: int
    answer: Answer


class ClockRead(msgspec.Struct, frozen=True, tag="clock_read"):
    """Answer to ClockWanted."""

    node: str
    request: int
    monotonic_seconds: float
    unix_seconds: float = 0.0


class TracePart(msgspec.Struct, frozen=True, tag="trace_part"):
    """Answer to TraceWanted."""

    node: str
    request: int
    trace: NodeTrace


Reply = Verified | Inspected | Probed | Health | ClockRead | TracePart

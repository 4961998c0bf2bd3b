"""A plan as rows of words: one line per figure, one column per scheme."""

from __future__ import annotations

from collections.abc import Callable

from ftrain_launcher.planning.model import Job, Outcome

_LIMITS = {
    "cost": "its cost",
    "step": "the step",
    "sending": "sending",
    "fixed": "-",
}
_FIGURES: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("memory a node", lambda o: size(o.memory_bytes_per_node)),
    ("sent a snapshot, a node", lambda o: size(o.sent_bytes_per_node)),
    ("sent a second, a node", lambda o: f"{size(o.sent_bytes_per_node_second)}/s"),
    ("a snapshot costs training", lambda o: duration(o.cost_seconds)),
    ("survives a node's loss after", lambda o: duration(o.lag_seconds) if o.sent_bytes_per_node else "never"),
    ("best interval, Young", lambda o: duration(o.young_seconds)),
    ("best interval, Daly", lambda o: duration(o.daly_seconds)),
    ("interval", lambda o: f"{duration(o.interval_seconds)} ({counted(o.every_steps, 'step')})"),
    ("bounded by", lambda o: _LIMITS[o.limited_by]),
    ("a failure: training redone", lambda o: duration(o.redone_seconds)),
    ("a failure: until training again", lambda o: duration(o.restart_seconds)),
    ("a lost node: exposed for", lambda o: duration(o.exposed_seconds) if o.exposed_seconds else "-"),
    ("all snapshots lost in a month", lambda o: chance(o.survival_per_month, o.losses_per_month)),
    ("survival, 30 days", lambda o: share(o.survival_per_month)),
    ("goodput", lambda o: f"{o.goodput:.2%}"),
)


def heads(found: list[Outcome]) -> list[str]:
    """The names of the schemes."""
    return ["", *(outcome.name for outcome in found)]


def rows(found: list[Outcome]) -> list[list[str]]:
    """One row per figure."""
    return [[name, *(text(outcome) for outcome in found)] for name, text in _FIGURES]


def summary(job: Job) -> str:
    """What is planned, in one line."""
    return (
        f"{size(job.state_bytes)} of state on {counted(job.nodes, 'node')} x {counted(job.nproc_per_node, 'rank')}, "
        f"{size(job.bytes_per_node)} a node; a failure every {duration(job.mtbf_seconds)}"
    )


def counted(number: int, name: str) -> str:
    """``1 node``, ``2,048 nodes``."""
    return f"{number:,} {name}{'s' * (number != 1)}"


def size(count: float) -> str:
    """Bytes, decimal, three digits."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"
    return f"{count:.3g} B"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.3g} {name}" if seconds < 1000 * unit else f"{seconds / unit:,.0f} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 or seconds == 0 else f"{1e3 * seconds:.3g} ms"


def share(value: float) -> str:
    """A probability close to 1, with as many nines as it has."""
    for digits in range(2, 14):
        text = f"{value:.{digits}%}"
        if not text.startswith("100"):
            return text
    return "100%"


def chance(survival: float, losses: float) -> str:
    """Of a loss: one in so many months while that is rare, else how many losses a month."""
    if losses == 0:
        return "-"
    if losses < 1:
        return f"1 in {float(f'{1 / (1 - survival) if losses > 1e-6 else 1 / losses:.2g}'):,.0f}"
    return f"{losses:,.3g} times"

"""A plan as a picture: what an interval costs, and what parity gives, for any rate of failures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.errors import UsageError
from ftrain_launcher.planning import model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 200
_INTERVAL_SECONDS = (0.1, 4 * 3600.0)
_FAILURES_PER_NODE_DAY = (1e-4, 1.0)
_PARITY_MAX = 4
"""As for ftrain run."""


def available() -> None:
    """Raises UsageError if there is no matplotlib; nothing needs to be computed to know."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--out: plots need matplotlib; pip install ftrain[plot]") from error


def draw(job: model.Job, file: Path) -> None:
    """Write the picture, a PNG. Raises UsageError where it cannot be written."""
    available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    left, right = figure.subplots(1, 2)
    _draw_intervals(left, job)
    _draw_survival(right, job)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise UsageError(f"--out {file}: {error.strerror or error}") from error


def _draw_intervals(axes: Axes, job: model.Job) -> None:
    for scheme in model.schemes(job):
        found = model.outcome(job, scheme)
        label = f"{scheme.name}: {1 - found.goodput:.2%}"
        if scheme.every_seconds is not None:  # one point on the curve of its kind
            axes.plot(found.interval_seconds, 1 - found.goodput, "ko", label=label)
            continue
        shortest, longest = _INTERVAL_SECONDS
        points = _spread(max(shortest, found.lag_seconds), max(longest, 4 * found.interval_seconds))
        (line,) = axes.plot(points, [_lost(job, scheme, x) for x in points], label=label)
        axes.plot(found.interval_seconds, 1 - found.goodput, "o", color=line.get_color())
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training between snapshots, s",
        ylabel="share of time lost to failures and snapshots",
        title="What the interval costs (points: as planned)",
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_survival(axes: Axes, job: model.Job) -> None:
    rates = _spread(*_FAILURES_PER_NODE_DAY)
    parity_max = min(_PARITY_MAX, job.group_size - 1)  # none for one node
    for parity in range(min(1, parity_max), parity_max + 1):
        scheme = model.ours(replace(job, parity=parity))
        axes.plot(rates, _losing(job, scheme, rates), label=scheme.name)
    if job.nodes >= 2:
        scheme = model.replicas(job)
        axes.plot(rates, _losing(job, scheme, rates), "--", label=scheme.name)
    axes.axvline(job.failures_per_node_day, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(1e-12, 1.5),
        xlabel="failures per node and day (line: this job)",
        ylabel="probability of losing all snapshots in 30 days",
        title=f"What memory survives: {job.nodes:,} nodes",
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _lost(job: model.Job, scheme: model.Scheme, interval_seconds: float) -> float:
    return 1 - model.goodput(job, scheme, interval_seconds)


def _losing(job: model.Job, scheme: model.Scheme, rates: list[float]) -> list[float]:
    jobs = (replace(job, failures_per_node_day=rate) for rate in rates)
    return [-math.expm1(-model.losses_per_second(j, scheme) * model.MONTH_SECONDS) for j in jobs]


def _spread(first: float, last: float) -> list[float]:
    ratio = math.log(last / first) / (_POINTS - 1)
    return [first * math.exp(ratio * i) for i in range(_POINTS)]

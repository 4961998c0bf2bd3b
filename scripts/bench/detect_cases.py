"""What the campaign does to jobs, what must be said of it, and whether what was said is right. Pure.

A case breaks one rank from within (``faults/mischief.py``), or the network between hosts from outside. What may be said
of it are kinds of incidents; nothing may be said of an innocent one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CRASH, HANG, STUCK, MISMATCH = "crash", "hang", "communication_hang", "mismatch"
SLOW, SLOW_LINK, DIVERGENCE, NOTHING = "slow", "communication_slow", "divergence", "nothing"
SAID = (CRASH, HANG, STUCK, MISMATCH, SLOW, SLOW_LINK, DIVERGENCE, "other", NOTHING)

SHAPES = ("dp", "dp_tp", "dp_pp")
NAMED_SECONDS_MAX = 1.0
CHECK_STEPS = 20
"""Between comparisons of replicas; ftrain's default of 100 would only make the jobs longer."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is done to a job."""

    name: str
    fault: str
    """Of `mischief.FAULTS`, or none; that of the network, if ``on_hosts``."""
    kinds: tuple[str, ...] = ()
    """What it may be called; none: nobody may be accused."""
    seconds_max: float | None = None
    """From fault to verdict."""
    steps_max: int | None = None
    """The same in steps."""
    missed_max: int = 0
    """Of ten that may be missed."""
    more_steps: int = 40
    """That the job makes after the fault."""
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    shapes: tuple[str, ...] = SHAPES
    on_hosts: bool = False
    names_link: bool = False
    """A link between two hosts is at fault; else a host."""
    one_way: bool = False
    """Only the direction from the first to the second."""
    quick: bool = False


def _hang(fault: str, *, quick: bool = False) -> Case:
    return Case(name=fault, fault=fault, kinds=(HANG,), seconds_max=NAMED_SECONDS_MAX, quick=quick)


def _mismatch(fault: str, *kinds: str, quick: bool = False) -> Case:
    return Case(name=fault, fault=fault, kinds=(MISMATCH, *kinds), quick=quick)


def _slow(factor: float, steps_max: int, missed_max: int = 0, *, quick: bool = False) -> Case:
    return Case(
        name=f"slow {factor:g}x",
        fault="slow",
        kinds=(SLOW,),
        steps_max=steps_max,
        missed_max=missed_max,
        more_steps=steps_max + 20,
        arguments=("--factor", str(factor)),
        quick=quick,
    )


def _innocent(fault: str, *, quick: bool = False) -> Case:
    return Case(name=fault, fault=fault, quick=quick)


def _link(fault: str, *kinds: str, one_way: bool = False) -> Case:
    return Case(name=fault, fault=fault, kinds=kinds, shapes=("dp",), on_hosts=True, names_link=True, one_way=one_way)


def _host(fault: str, *kinds: str) -> Case:
    return Case(name=fault, fault=fault, kinds=kinds, shapes=("dp",), on_hosts=True)


CASES = (
    Case(name="kill", fault="kill", kinds=(CRASH,), seconds_max=NAMED_SECONDS_MAX),
    _hang("stop", quick=True),
    _hang("spin"),
    _hang("sleep"),
    _hang("loader"),
    _mismatch("skip", quick=True),
    _mismatch("order"),
    _mismatch("shape"),
    _mismatch("swallowed", HANG),  # a step ahead, it may wait for the others' snapshot and never enter an operation
    _slow(3.0, 20),
    _slow(1.5, 20, quick=True),
    _slow(1.2, 50, missed_max=1),
    Case(name="quota", fault="quota", kinds=(SLOW,), steps_max=20),
    Case(
        name="bit",
        fault="bit",
        kinds=(DIVERGENCE,),
        steps_max=CHECK_STEPS,
        flags=("--check-replicas", str(CHECK_STEPS)),
        shapes=("dp", "dp_tp"),  # nothing tells of dp_pp's plain tensors that they are replicas
    ),
    _innocent("slow_start"),
    _innocent("evaluation", quick=True),
    _innocent("checkpoint"),
    _innocent("data_stall"),
    _link("link cut", STUCK),
    _link("link cut one way", STUCK, one_way=True),
    _link("link loses", SLOW_LINK, STUCK),  # TCP may rest for seconds before it tries again
    _link("link loses one way", SLOW_LINK, STUCK, one_way=True),
    _host("host rate", SLOW_LINK),
    _host("host delay", SLOW_LINK),
)


@dataclass(frozen=True)
class Trial:
    """One case in one shape, with the rank or hosts that it hits."""

    case: Case
    shape: str
    rank: int
    """Whose fault it is; on hosts the position of the host, or of the link's first one."""
    at_step: int


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    exit_code: int | None
    """None: it did not end."""
    incidents: Sequence[Json]
    """As ``ftrain incidents NUMBER --json`` tells them."""
    fault_time: float | None
    fault_step: int | None
    """None: the fault did not happen."""
    new_step_time: float | None
    """When all ranks had made a step that nobody had made before."""
    node: str = ""
    """On hosts, the name of the node that is hit."""


@dataclass(frozen=True)
class Judgement:
    """What was said of a trial."""

    said: str
    right: bool
    """Kind and suspect; of an innocent case, that nothing was said."""
    false: int
    """Other incidents, that accuse somebody else."""
    seconds: float | None = None
    """From fault to verdict."""
    steps: int | None = None
    recovered_seconds: float | None = None
    """From fault to the first new step."""
    sentence: str = ""


def judge(trial: Trial, outcome: Outcome) -> Judgement:
    """Compare what was said with what was done.

    Raises:
        RuntimeError: nothing was done.
    """
    if outcome.fault_time is None or outcome.fault_step is None:
        raise RuntimeError(f"{trial.case.name} in {trial.shape}: the fault did not happen")
    case = trial.case
    right = [i for i in outcome.incidents if _kind(i) in case.kinds and _names(i, trial, outcome.node)]
    false = [i for i in outcome.incidents if not (case.kinds and _names(i, trial, outcome.node))]
    told = (right or [i for i in outcome.incidents if _kind(i) in case.kinds] or list(outcome.incidents))[:1]
    if not told:
        return Judgement(NOTHING, not case.kinds, 0)
    timeline, verdicts = told[0]["timeline"], told[0]["verdicts"]
    named = timeline["named"] if timeline["named"] is not None else timeline["detected"]
    step = next((v["step"] for v in verdicts if v["step"] is not None), None)
    return Judgement(
        _kind(told[0]),
        bool(right),
        len(false),
        named - outcome.fault_time,
        None if step is None else step - outcome.fault_step,
        None if outcome.new_step_time is None else outcome.new_step_time - outcome.fault_time,
        told[0]["reason"] or "",
    )


def _kind(incident: Json) -> str:
    kind = CRASH if incident["kind"] == "worker_exit" else incident["kind"]
    return kind if kind in SAID else "other"


def _names(incident: Json, trial: Trial, node: str) -> bool:
    """Whether it accuses the culprit and nobody else."""
    if not trial.case.on_hosts:
        return [suspect["rank"] for suspect in incident["suspects"]] == [trial.rank]
    verdict = incident["verdicts"][0] if incident["verdicts"] else {"links": [], "nodes": []}
    links = [(link["source"], link["destination"]) for link in verdict["links"]]
    if trial.case.names_link:
        there = trial.rank, trial.rank + 1
        return bool(links) and set(links) <= ({there} if trial.case.one_way else {there, there[::-1]})
    told = bool(links) or bool(verdict["nodes"])
    return told and set(verdict["nodes"]) <= {node} and all(trial.rank in link for link in links)

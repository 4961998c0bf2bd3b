"""Pure: the story of one incident in text, from what `views.incident` says of it (``ftrain incidents NUMBER``)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

from ftrain_launcher.control.wait_graph import draw
from ftrain_launcher.detect.verdict import Wait

MOMENTS = {
    "began": "began",
    "detected": "fault seen",
    "named": "named",
    "decided": "decided",
    "formed": "formed",
    "restored": "restored",
    "first_step": "first step",
}
"""Of a timeline, in order, and what people call them."""
_INDENT = "  "
_ENDED = frozenset(("finished", "failed"))
"""Of a job: what is open then stays so."""


def phases(timeline: dict[str, float | None]) -> dict[str, float]:
    """How long it took to each moment that was reached, in seconds since the one before."""
    reached = _reached(timeline)
    return {name: time - before for (_, before), (name, time) in pairwise(reached)}


def tell(incident: dict[str, Any]) -> list[str]:
    """All lines. What does not apply is left out."""
    lines = list(_beginning(incident))
    for title, body in _sections(incident):
        if body:
            lines += ["", title, *(_INDENT + line for line in body)]
    return lines


def _beginning(incident: dict[str, Any]) -> Iterator[str]:
    yield f"incident {incident['number']}: {incident['kind']}: {_what_broke(incident)}"
    generation, seconds = incident["generation"], incident["seconds"]
    if incident["harmless"]:
        yield f"it stopped nobody in generation {generation}"
    else:
        job_state = incident["job_state"]
        how = f"the job has {job_state}" if job_state in _ENDED else incident["state"]
        if seconds is not None:
            how = f"training again after {seconds:.2f} s"
        yield f"it ended generation {generation}; {how}"


def _what_broke(incident: dict[str, Any]) -> str:
    """The verdict that is about the suspects says more than the cause."""
    suspects = {suspect["rank"] for suspect in incident["suspects"]}
    for verdict in incident["verdicts"]:
        if verdict["kind"] == incident["kind"] and suspects & set(verdict["ranks"]):
            return str(verdict["sentence"])
    return str(incident["reason"])


def _sections(incident: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    yield "timeline", list(_timeline(incident))
    for verdict in incident["verdicts"]:
        yield from _verdict(verdict, is_told=verdict["sentence"] == _what_broke(incident))
    if len(incident["signs"]) > 1:
        yield "what was seen", [_sign(sign, incident["timeline"]["detected"]) for sign in incident["signs"]]
    for sign in incident["signs"]:
        yield from _evidence(sign)
    yield "what followed", list(_outcome(incident))
    yield "what was proved of the re-sharded state", list(_certificate(incident["certificate"] or {}))
    refused = incident.get("refused_certificate") or {"findings": ()}
    yield "why the re-sharded state was refused", list(refused["findings"])


def _timeline(incident: dict[str, Any]) -> Iterator[str]:
    timeline = {**incident["timeline"], "began": _began(incident)}
    reached = _reached(timeline)
    took = phases(timeline)
    width = max(len(MOMENTS[name]) for name, _ in reached)
    for name, time in reached:
        moment = datetime.fromtimestamp(time).astimezone().isoformat(" ", "milliseconds")
        length = f"  ({took[name]:.3f} s)" if name in took else ""
        yield f"{MOMENTS[name]:{width}}  {moment}  +{time - reached[0][1]:.3f} s{length}"


def _began(incident: dict[str, Any]) -> float | None:
    """The detector knows how long a fault had lasted when it was found; None: nobody saw it begin."""
    named = incident["timeline"]["named"]
    seconds = incident["verdicts"][0]["seconds"] if incident["verdicts"] else 0.0
    return named - seconds if named is not None and seconds else None


def _reached(timeline: dict[str, float | None]) -> list[tuple[str, float]]:
    moments = [(name, timeline.get(name)) for name in MOMENTS]
    return sorted(((name, time) for name, time in moments if time is not None), key=lambda moment: moment[1])


def _verdict(verdict: dict[str, Any], *, is_told: bool) -> Iterator[tuple[str, list[str]]]:
    where = "" if verdict["step"] is None else f" after step {verdict['step']}"
    lasted = f", found when it had lasted {verdict['seconds']:.2f} s" if verdict["seconds"] else ""
    found = f"{verdict['kind']}{where}{lasted}; confidence {verdict['confidence']:.2f}"
    yield "what the detector found", [found] if is_told else [found, verdict["sentence"]]
    yield "who waited for whom", draw(Wait(**wait) for wait in verdict["waits"])
    details = {name: text.rstrip() for name, text in verdict["details"].items() if text.strip()}
    short = {name: text for name, text in details.items() if "\n" not in text}
    yield "evidence", [f"{name}: {text}" for name, text in short.items()]
    for name, text in details.items():
        if name not in short:
            yield name, text.splitlines()


def _sign(sign: dict[str, Any], detected: float) -> str:
    return f"{sign['time'] - detected:+.3f} s  {sign['text']}"


def _evidence(sign: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    who = sign["node"] if sign["rank"] is None else f"rank {sign['rank']}"
    if sign["traceback"]:
        yield f"traceback of {who}", sign["traceback"].rstrip().splitlines()
    yield f"the end of the log of {who}", [line.rstrip() for line in sign["last_lines"]]


def _certificate(certificate: dict[str, Any]) -> Iterator[str]:
    if not certificate:
        return
    yield f"step {certificate['version']}, {certificate['ranks']} ranks, in {certificate['seconds']:.2f} s"
    yield f"{certificate['tensors']} tensors are whole; {certificate['compared_bytes']:,} bytes are equal on replicas"
    yield f"{certificate['counters']} parameters have equal optimizer steps"
    for name, position in certificate["samplers"].items():
        yield f"{name} stands at {position} global batches, {certificate['samples'].get(name, 0):,} samples"


def _outcome(incident: dict[str, Any]) -> Iterator[str]:
    if incident["decision"] is not None:
        yield f"decision: {incident['decision']}"
    if incident["over"] is not None:
        yield incident["over"]
    if incident["timeline"]["formed"] is None:
        return
    version, lost = incident["resumed_from"], incident["steps_lost"]
    if version is None:
        yield "the job began anew: there was no snapshot to resume from"
    else:
        yield f"resumed from the snapshot after step {version}; sealed steps lost: {lost}"
    if kept := incident.get("ranks_kept"):
        ranks, read = incident["ranks"], incident["read_bytes"]
        yield f"{kept} of {ranks} ranks kept their live tensors; {read:,} bytes of state were read"
    if incident["demoted"] is not None:
        yield f"the snapshot after step {incident['demoted']} was passed over: the loss was not finite after it"
    if incident.get("doubtful") is not None:
        yield f"the snapshot after step {incident['doubtful']} was passed over: it could not be certified"

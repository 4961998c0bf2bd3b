"""What the ranks of reshard_worker.py have written down, and what it says."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Line(NamedTuple):
    """A rank's note of a finished step."""

    step: int
    time: float
    run: str
    """Of the training function: a process, and the generation."""
    loss: float


class Again(NamedTuple):
    """Seconds from a fault until all ranks of the next world have done a step."""

    any_step: float
    """Whichever."""
    new_step: float
    """One that nobody had done before the fault."""


def lines_of(folder: Path) -> list[Line]:
    """All ranks' notes."""
    found = []
    for path in folder.glob("rank-*"):
        for line in _whole_lines(path):
            step, when, run, loss = line.split()
            found.append(Line(int(step), float(when), run, float.fromhex(loss)))
    return found


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step, the last time that it was done."""
    return {line.step: line.loss for line in sorted(lines_of(folder), key=lambda line: line.time)}


def again(lines: list[Line], killed_at: float, world: int) -> Again | None:
    """When so many ranks that began after the fault trained; None: they do not yet."""
    before = [line for line in lines if line.time <= killed_at]
    old, done = {line.run for line in before}, max(line.step for line in before)
    firsts: dict[str, float] = {}
    news: dict[str, float] = {}
    for line in sorted(lines, key=lambda line: line.time):
        if line.run not in old:
            firsts.setdefault(line.run, line.time)
            if line.step > done:
                news.setdefault(line.run, line.time)
    if len(news) < world:
        return None
    return Again(*(sorted(times.values())[world - 1] - killed_at for times in (firsts, news)))


def reads_of(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each rank of a world of that size noted of reading its state."""
    entries = [json.loads(line) for path in folder.glob("read-*") for line in _whole_lines(path)]
    return [entry for entry in entries if entry["world"] == world]


def generations_of(folder: Path) -> dict[int, set[int]]:
    """In which generations each step was done."""
    found: dict[int, set[int]] = defaultdict(set)
    for step, generation, _ in _samples(folder):
        found[step].add(generation)
    return found


def samples_of(folder: Path) -> dict[int, list[int]]:
    """What each step trained on, the last time that it was done, by all ranks."""
    newest = {step: max(generations) for step, generations in generations_of(folder).items()}
    found: dict[int, list[int]] = defaultdict(list)
    for step, generation, samples in _samples(folder):
        if generation == newest[step]:
            found[step] += samples
    return found


def _samples(folder: Path) -> Iterator[tuple[int, int, list[int]]]:
    """Of all ranks: a step, the generation in which it was done, and its samples."""
    for path in folder.glob("samples-*"):
        for line in _whole_lines(path):
            step, generation, *samples = map(int, line.split())
            yield step, generation, samples


def _whole_lines(path: Path) -> list[str]:
    """Without one that is being written."""
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()

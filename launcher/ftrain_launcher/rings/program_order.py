"""Pure: whether a rank's newest steps take the course of earlier ones.

A training program repeats itself, step after step. A rank that has left out an operation, or called one out of turn,
departs from its own earlier steps; those that are held up by it do not. That tells one from the other where nobody else
does the same work: two ranks that wait for each other, a pipeline without replicas. It proves nothing by itself:
evaluation, too, is a new course, but one that all ranks take.

What was called is compared first without sizes, which may change from step to step, and then with them. Where each step
has taken a course that some earlier one took, it may still have been the turn of another: a line is logged every ten
steps, with a reduction of its own. So at last, if all steps on record repeat themselves, they say whose turn it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from ftrain_launcher.detect.records import Call, Departure

STEPS_MIN = 3
"""Of fewer complete steps none is usual."""
STEPS_LOOKED_AT = 4
"""The newest complete ones: where operations are alike, one too few shows some steps later."""

STEPS_SKIPPED = 2
"""The first ones on record may have been others: buckets are laid out anew."""
PERIODS_MIN = 3
"""So often must courses have come in turn."""

SIZES_NEW_MIN = 3
"""So many courses of sizes that an operation never took before, in the newer half of the steps on record: its size says
nothing."""

Key = Callable[[Call], Hashable]


def departure(steps: Sequence[Sequence[Call]]) -> Departure | None:
    """Where one of the newest steps first left the course of all before it; None: nowhere, or too little is known.

    Args:
        steps: what was called in each, oldest first; the last one is the step at hand, of which only the beginning is
            known.
    """
    *complete, present = steps
    if len(complete) < STEPS_MIN:
        return None
    for key in (_kind, _with_size(complete)):
        for place in range(max(STEPS_MIN, len(complete) - STEPS_LOOKED_AT), len(complete)):
            like, common = _nearest(complete[:place], complete[place], key)
            if common < max(len(like), len(complete[place])):
                return Departure(_at(complete[place], common), _at(like, common))
        like, common = _nearest(complete, present, key)
        if common < len(present):
            return Departure(present[common], _at(like, common))
    return _out_of_turn(complete, present)


def _out_of_turn(complete: Sequence[Sequence[Call]], present: Sequence[Call]) -> Departure | None:
    """Where one of the newest steps took a course that was not due."""
    courses = [tuple(map(_kind, step)) for step in complete]
    for place in range(max(0, len(complete) - STEPS_LOOKED_AT), len(complete) + 1):
        period = _period(courses[STEPS_SKIPPED:place])
        if period is None:
            continue
        is_over = place < len(complete)
        step, due = complete[place] if is_over else present, complete[place - period]
        common = _in_common(due, [_kind(call) for call in step], _kind)
        if common < (max(len(due), len(step)) if is_over else len(step)):
            return Departure(_at(step, common), _at(due, common))
    return None


def _period(courses: Sequence[Hashable]) -> int | None:
    """After how many steps courses come again; None: they do not all, or all are the same."""
    if len(set(courses)) < 2:
        return None
    periods = range(2, len(courses) // PERIODS_MIN + 1)
    repeats = (n for n in periods if all(a == b for a, b in zip(courses, courses[n:], strict=False)))
    return next(repeats, None)


def _nearest(steps: Sequence[Sequence[Call]], one: Sequence[Call], key: Key) -> tuple[Sequence[Call], int]:
    """The step that has most of its beginning in common with one, the shortest of them, and how much that is."""
    keys = [key(call) for call in one]
    return max(((step, _in_common(step, keys, key)) for step in steps), key=lambda found: (found[1], -len(found[0])))


def _in_common(step: Sequence[Call], keys: Sequence[Hashable], key: Key) -> int:
    for place, (call, other) in enumerate(zip(step, keys, strict=False)):
        if key(call) != other:
            return place
    return min(len(step), len(keys))


def _at(step: Sequence[Call], place: int) -> Call | None:
    return step[place] if place < len(step) else None


def _kind(call: Call) -> Hashable:
    return call.kind


def _with_size(steps: Sequence[Sequence[Call]]) -> Key:
    """Calls with their sizes, but for those whose sizes are other ones all the time: tokens that go to experts."""
    half = len(steps) // 2
    older = {sizes for step in steps[:half] for sizes in _sizes(step)}
    newer = {sizes for step in steps[half:] for sizes in _sizes(step)}
    known, new = {kind for kind, _ in older}, Counter(kind for kind, _ in newer - older)
    changing = {kind for kind in known if new[kind] >= SIZES_NEW_MIN}
    return lambda call: call.kind if call.kind in changing else call


def _sizes(step: Sequence[Call]) -> Iterable[tuple[Hashable, tuple[int, ...]]]:
    """Of each kind of call in a step, all sizes in their order."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for call in step:
        found[call.kind].append(call.bytes)
    return ((kind, tuple(sizes)) for kind, sizes in found.items())

"""A script's rules, held against what its ranks hold: before the first step, and for a while after it.

What is proved wrong ends the job before it has trained; what only looks wrong is said once, by rank 0. Tensors that
say nothing at first, being new (doubts.py), are looked at again after 1, 2, 4, ... steps, until they do. Replicas that
steps have made different are in the snapshots, but no other world takes one of them for all; nor what no rule is about,
where ranks begin with unlike values (unexplained.py).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ftrain.logical.coverage import findings
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.live import Live
from ftrain.logical.placements import Scope
from ftrain.logical.rules import Rules
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.reshard import unexplained
from ftrain.reshard.certificate import shown, sum_of_bytes
from ftrain.reshard.describer import Describer
from ftrain.reshard.doubts import Look, doubts, grown_apart, look_at
from ftrain.reshard.saying import broadcast_text, gathered

STEPS_MAX = 256
"""What no step has changed by then is left alone."""
_GO_ON, _ENOUGH = "+", "-"


class LayoutWatch:
    """One rank's. All methods are collectives."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._open: frozenset[str] = frozenset()
        self._steps = 0

    def begin(self, objects: Mapping[str, Any]) -> bool:
        """As a job begins, with nothing trained; whether to look on.

        Raises LayoutInvalid, on all ranks, for what is proved wrong.
        """
        live = self._begins_with(objects)
        if reason := unexplained.refusal(live):
            self._describer.refuse(reason)
        if live is None or self._describer.rules is None:
            return False
        check_layout(live, self._describer.rules)
        looks = {each.tensor.name: each for each in _looks(live, live.by_rule)}
        self._open = frozenset(name for name, look in looks.items() if look.is_open)
        return self._tell(live.state.rank, looks, is_new=True)

    def _begins_with(self, objects: Mapping[str, Any]) -> Live | None:
        """None: no rule says that it can be described, and it cannot; the first snapshot says why."""
        try:
            return self._describer.describe(objects)
        except Exception:  # whatever it is: where there are no rules, the job trains all the same
            if self._describer.rules is not None:
                raise
            return None

    def after_step(self, objects: Mapping[str, Any]) -> bool:
        """After each; whether to look on."""
        self._steps += 1
        if self._steps & (self._steps - 1):
            return True
        live = self._describer.describe(objects)
        looks = {each.tensor.name: each for each in _looks(live, self._open)}
        self._open = frozenset(name for name, look in looks.items() if look.is_open)
        return self._tell(live.state.rank, looks, is_new=False) and self._steps < STEPS_MAX

    def _tell(self, rank: int, looks: Mapping[str, Look], *, is_new: bool) -> bool:
        """Whether some rank has something open; warns, on rank 0, of what looks wrong."""
        said = [
            msgspec.msgpack.decode(each, type=tuple[int, dict[str, Look], bool])
            for each in gathered(msgspec.msgpack.encode((rank, looks, bool(self._open))))
        ]
        sights = [(each, seen) for each, seen, _ in said]
        state = _GO_ON if any(is_open for _, _, is_open in said) else _ENOUGH
        apart = [] if is_new else grown_apart(sights)  # where all is new, `check_layout` has compared all bytes
        verdict = broadcast_text("\n".join([state, "; ".join(shown(apart)), "; ".join(shown(doubts(sights, is_new)))]))
        state, refused, doubted = (*verdict.split("\n"), "", "")[:3]
        if refused:
            self._describer.refuse(refused)
        if doubted and rank == 0:
            warnings.warn(f"ctx.layout may be wrong: {doubted}", stacklevel=2)
        return state == _GO_ON


def check_layout(live: Live, rules: Rules) -> None:
    """A collective: do the parts that ranks hold by a script's rules make up what they are parts of?

    And are those equal that are said to be: a part that is cut by hand looks like a replica of the others. Else nobody
    could take the state over once a node is lost. Raises LayoutInvalid, on all ranks.
    """
    sums = [
        sum_of_bytes(memory) if _is_replica(each) else 0
        for each, memory in zip(live.state.tensors, live.tensors, strict=True)
    ]
    encoded = gathered(msgspec.msgpack.encode((live.state, sums)))
    said = [msgspec.msgpack.decode(each, type=tuple[RankState, tuple[int, ...]]) for each in encoded]
    wrong = [str(each) for each in findings([state for state, _ in said], are_kept=False)]
    if verdict := broadcast_text("; ".join(shown([*wrong, *_unequal(said, rules)]))):
        raise LayoutInvalid(f"by ctx.layout the ranks do not hold the state as a whole: {verdict}")


def _unequal(said: Sequence[tuple[RankState, Sequence[int]]], rules: Rules) -> Iterator[str]:
    """Replicas by layout that are none."""
    held: dict[tuple[str, object], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for state, sums in said:
        for tensor, hashed in zip(state.tensors, sums, strict=True):
            if _is_replica(tensor):
                held[tensor.name, tensor.axes][hashed].append(state.rank)
    for (name, _), by_sum in held.items():
        if len(by_sum) > 1:
            ranks = " and ".join(str(ranks) for ranks in by_sum.values())
            rule = rules.match(name)
            where = f"layout {rule[0]!r}, tensor {name}" if rule else name
            yield (
                f"{where}: replicas are not equal: ranks {ranks} differ before the first step: if they hold parts of "
                "it, say 'MESH_DIM: shard(DIM)'; else give all ranks the same values to begin with"
            )


def _is_replica(tensor: LogicalTensor) -> bool:
    """Its layout says so."""
    return tensor.scope is Scope.SAME and tensor.copies > 1


def _looks(live: Live, names: frozenset[str]) -> Iterator[Look]:
    """At the tensors of these names that are cut, or held by several ranks."""
    for tensor, memory in zip(live.state.tensors, live.tensors, strict=True):
        is_spread = tensor.copies > 1 or tensor.local_shape != tensor.shape
        if tensor.name in names and not tensor.like and is_spread:
            yield look_at(tensor, memory)

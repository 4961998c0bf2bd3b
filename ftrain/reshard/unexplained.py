"""Parameters of which nothing tells who has the same: no DDP, no DTensor's mesh, no rule of the script's.

A plain parameter may be a replica, a part that was cut by hand, or each rank's own; so may one that only an optimizer
has, under its number. Where all that hold it have the same, it does not matter which. Where not, no other world can
take it over, and that is said as training begins, not when a node is lost. Values may go apart later (local SGD).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import msgspec
from torch import Tensor, nn

from ftrain.logical.coverage import findings
from ftrain.logical.live import Live
from ftrain.logical.placements import Scope
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.reshard.certificate import shown, sum_of_bytes
from ftrain.reshard.saying import broadcast_text, gathered

Sum = tuple[LogicalTensor, int]
"""What one rank says of a parameter: all but its bytes, and their checksum."""


def refusal(live: Live | None) -> str:
    """A collective, before the first step: why no other world can take the state over; empty: nothing.

    ``live``: what this rank holds, if it could be described. All ranks know, so that whoever is left when a node is
    lost has said so.
    """
    mine = (0, []) if live is None else (live.state.rank, list(sums(live)))
    encoded = gathered(msgspec.msgpack.encode(mine))
    return broadcast_text(judge([msgspec.msgpack.decode(each, type=tuple[int, list[Sum]]) for each in encoded]))


def sums(live: Live) -> Iterator[Sum]:
    """Of this rank's parameters that nothing explains."""
    for tensor, memory in zip(live.state.tensors, live.tensors, strict=True):
        if is_unexplained(tensor, memory, live.by_rule):
            yield tensor, sum_of_bytes(memory)


def is_unexplained(tensor: LogicalTensor, memory: Tensor, by_rule: frozenset[str]) -> bool:
    """Whether its bytes alone tell if ranks have the same of it. Buffers are each rank's own (BatchNorm)."""
    if tensor.scope is Scope.SAME:
        return tensor.copies == 0 and not tensor.like
    return tensor.scope is Scope.OWN and tensor.name not in by_rule and isinstance(memory, nn.Parameter)


def judge(said: Sequence[tuple[int, Sequence[Sum]]]) -> str:
    """What is wrong, given what all ranks say; empty: nothing."""
    states = [RankState(rank, tuple(tensor for tensor, _ in mine)) for rank, mine in said]
    shapes = (finding.name for finding in findings(states, are_kept=False))
    names = list(dict.fromkeys([*_unlike(said), *shapes]))
    if not names:
        return ""
    return (
        f"nothing tells what ranks have of {', '.join(shown(names))}, and they hold unlike values: by ctx.layout say "
        "'MESH_DIM: shard(DIM)' of parts, 'per_rank' of each rank's own; pipeline stages need the names of the whole "
        "model (docs/resharding.md)"
    )


def _unlike(said: Sequence[tuple[int, Sequence[Sum]]]) -> list[str]:
    held: dict[tuple[object, ...], set[tuple[object, int]]] = defaultdict(set)
    for _, mine in said:
        for tensor, hashed in mine:
            part = (tensor.axes, tensor.strides) if tensor.scope is Scope.SAME else ()
            held[tensor.name, *part].add((tensor.local_shape, hashed))
    return list(dict.fromkeys(str(name) for (name, *_), found in held.items() if len(found) > 1))

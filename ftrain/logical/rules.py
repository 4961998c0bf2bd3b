"""The layout language: how tensors that are not DTensors are spread, said by name.

    rules = Rules({
        "*.embedding.weight": "tp: shard(0); trim(0, 50257)",
        "*.qkv.weight":       "tp: shard(0, parts=[4096, 1024, 1024])",
        "*.gate_up.weight":   "tp: shard(0, parts=2)",
        "*.running_*":        "per_rank",
        "*":                  "replicate",
    })

A name is matched by the first pattern that fits (``*``, ``?``, ``[...]``; ``*`` crosses dots). Then come clauses, each
about one dimension of the mesh, in the order in which they cut; a dimension that none is about replicates. The words
are the patterns of Universal Checkpointing (arXiv 2406.18820). A rank knows its own part of a tensor only: the whole
is worked out from the clauses, backwards, and what they make of it must be that part again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from ftrain.logical.axes import Parts
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.placements import Cut, Located, Placement, Scope, Shard, Spread, locate

_CLAUSE = re.compile(
    r"""  trim \( \s* (?P<trimmed>\d+) \s*,\s* (?P<length>\d+) \s* \)
        | (?P<alone> per_rank | replicate | unique | average )
        | (?P<mesh>\w+) \s*:\s* (?P<spread> replicate | unique | average )
        | (?P<sharding>\w+) \s*:\s* shard \( \s* (?P<dim>\d+) \s* (?: ,\s* parts \s*=\s* (?P<parts>.+?) \s* )? \)
    """,
    re.VERBOSE | re.DOTALL,
)
_FORMS = (
    "'MESH_DIM: shard(DIM)', 'MESH_DIM: shard(DIM, parts=2)', 'MESH_DIM: shard(DIM, parts=[8, 4, 4])', "
    "'MESH_DIM: replicate', 'MESH_DIM: unique', 'MESH_DIM: average', 'trim(DIM, LENGTH)', "
    "'replicate', 'unique', 'average' or 'per_rank'"
)
PARTS_MAX = 1 << 16
"""Most parts of a dimension."""


@dataclass(frozen=True)
class NamedMesh:
    """The ranks as a grid, and this rank's place in it; torch's ``DeviceMesh`` in numbers."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    coordinate: tuple[int, ...]

    def cut(self, name: str, placement: Placement) -> Cut:
        """What one of its dimensions does. Raises LayoutInvalid if it has none of that name."""
        if name not in self.names:
            raise LayoutInvalid(f"the mesh has no dimension {name!r}; it has {', '.join(self.names) or 'none'}")
        at = self.names.index(name)
        return Cut(placement, self.shape[at], self.coordinate[at])


@dataclass(frozen=True)
class Rule:
    """What one line says."""

    clauses: tuple[tuple[str, Placement], ...] = ()
    """(mesh dimension, what it does), in the order of the cuts; those not named replicate."""
    everywhere: Spread | None = None
    """The same for all dimensions of the mesh."""
    trims: Mapping[int, int] = field(default_factory=dict)
    """True lengths of padded dimensions."""
    per_rank: bool = False
    """Each rank has its own, and keeps it."""

    def cuts(self, mesh: NamedMesh) -> list[Cut]:
        """On that mesh. Raises LayoutInvalid if a dimension is not one of its."""
        named = dict(self.clauses)
        rest = [(name, self.everywhere or Spread.REPLICATE) for name in mesh.names if name not in named]
        return [mesh.cut(name, placement) for name, placement in (*self.clauses, *rest)]

    def locate(self, local_shape: Sequence[int], mesh: NamedMesh) -> Located:
        """What a rank holds whose part has that shape. Raises LayoutInvalid if it cannot."""
        if self.per_rank:
            return locate(local_shape, ())._replace(scope=Scope.OWN)
        cuts = self.cuts(mesh)
        found = locate(_whole_shape(local_shape, cuts), cuts, self.trims)
        if (made := tuple(axis.size for axis in found.axes)) != tuple(local_shape):
            raise LayoutInvalid(f"this rank's part has shape {tuple(local_shape)}, by the rule it would have {made}")
        return found


class Rules:
    """Patterns of names and what holds for them. Raises LayoutInvalid, naming the pattern, for what is no rule."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        if not isinstance(rules, Mapping) or not all(isinstance(text, str) for pair in rules.items() for text in pair):
            raise LayoutInvalid(
                f"a layout is patterns of names and what holds, like {{'*.norm.*': 'replicate'}}, not {rules!r}"
            )
        self._rules = {pattern: _read(pattern, text) for pattern, text in rules.items()}

    def match(self, name: str) -> tuple[str, Rule] | None:
        """The first pattern that fits, and its rule."""
        return next(((p, rule) for p, rule in self._rules.items() if fnmatchcase(name, p)), None)

    def locate(self, name: str, local_shape: Sequence[int], mesh: NamedMesh) -> Located | None:
        """What a rank holds of the tensor of that name; None if no pattern fits.

        Raises LayoutInvalid, naming pattern and tensor, if the rule does not fit the tensor.
        """
        found = self.match(name)
        if found is None:
            return None
        pattern, rule = found
        try:
            return rule.locate(local_shape, mesh)
        except LayoutInvalid as error:
            raise LayoutInvalid(f"layout {pattern!r}, tensor {name}: {error}") from None


def _whole_shape(local_shape: Sequence[int], cuts: Sequence[Cut]) -> list[int]:
    """Each cut undone, the last one first. Equal chunks are assumed where a rule gives no lengths."""
    shape = list(local_shape)
    for placement, ranks, _ in reversed(cuts):
        if isinstance(placement, Shard):
            if placement.dim >= len(shape):
                raise LayoutInvalid(f"there is no dimension {placement.dim} in shape {tuple(local_shape)}")
            lengths = placement.parts
            shape[placement.dim] = sum(lengths) if isinstance(lengths, tuple) else shape[placement.dim] * ranks
    return shape


def _read(pattern: str, text: str) -> Rule:
    try:
        return _rule(text)
    except LayoutInvalid as error:
        raise LayoutInvalid(f"layout {pattern!r}: {error}") from None


def _rule(text: str) -> Rule:
    clauses: dict[str, Placement] = {}
    trims: dict[int, int] = {}
    alone: list[str] = []
    for part in map(str.strip, text.split(";")):
        match = _CLAUSE.fullmatch(part)
        if match is None:
            raise LayoutInvalid(f"{part!r} is no clause; write {_FORMS}, with ';' between clauses")
        if match["trimmed"]:
            trims[int(match["trimmed"])] = int(match["length"])
        elif match["alone"]:
            alone.append(match["alone"])
        elif (name := match["mesh"] or match["sharding"]) in clauses:
            raise LayoutInvalid(f"two clauses are about {name!r}")
        else:
            clauses[name] = (
                Spread(match["spread"]) if match["mesh"] else Shard(int(match["dim"]), _parts(match["parts"]))
            )
    if len(alone) + bool(clauses) > 1 or (alone == ["per_rank"] and trims):
        raise LayoutInvalid(f"{alone[0]!r} is about all ranks: nothing else may be said beside it")
    if alone == ["per_rank"]:
        return Rule(per_rank=True)
    return Rule(tuple(clauses.items()), Spread(alone[0]) if alone else None, trims)


def _parts(text: str | None) -> Parts:
    """A number of equal parts, or their lengths; of nested lists only the leaves count."""
    try:
        value = msgspec.json.decode(text or "1")
    except msgspec.DecodeError:
        value = []
    lengths = _leaves(value)
    if not 0 < len(lengths) <= PARTS_MAX or not all(type(length) is int and 0 < length < 1 << 48 for length in lengths):
        raise LayoutInvalid(f"parts={text}: a number of equal parts, or a list of their lengths, was expected")
    if isinstance(value, list):
        return lengths
    if lengths[0] > PARTS_MAX:
        raise LayoutInvalid(f"parts={text}: at most {PARTS_MAX} equal parts, or a list of their lengths")
    return int(value)


def _leaves(value: Any) -> tuple[Any, ...]:
    return tuple(leaf for item in value for leaf in _leaves(item)) if isinstance(value, list) else (value,)

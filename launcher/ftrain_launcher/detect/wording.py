"""Pure: what a verdict's sentence is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ftrain_launcher.detect.records import Call, Communicator, Departure, Op, Operation, ProcessState

LISTED_MAX = 8
_PARTS_MAX = 8
"""A list of ranks of more parts is cut, and its ranks are counted."""
_PROGRESSION_MIN = 4
"""So many numbers at equal distances are told by the first two and the last."""
_WORLD = "default_pg"
"""How torch describes the group of all ranks."""
_WRITTEN = {
    Op.ALL_GATHER_SINGLE: "all_gather_into_tensor",
    Op.REDUCE_SCATTER_SINGLE: "reduce_scatter_tensor",
    Op.RECEIVE: "recv",
    Op.RECEIVE_ANY: "recv from any",
}
_TYPES = dict(enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"))) | {
    9: "complex64",
    10: "complex128",
    11: "bool",
    15: "bfloat16",
}
"""torch's numbers of scalar types (c10/core/ScalarType.h)."""
_LETTERS = {
    "R": "is running",
    "S": "sleeps",
    "D": "waits for a device or for swapped memory (D)",
    "T": "is stopped (T)",
    "t": "is stopped by a debugger (t)",
    "Z": "is dead (Z)",
    "X": "is dead (X)",
    "": "is gone",
}


def written(op: int) -> str:
    """An operation as torch's users write it."""
    return _WRITTEN.get(Op(op), Op(op).name.lower()) if op in Op.__members__.values() else f"operation {op}"


def label(name: str, description: str) -> str:
    """A process group: by its description where it has one, since torch names groups by numbers."""
    return "the world group" if description == _WORLD else f"'{description or name}'"


def group(communicator: Communicator) -> str:
    """The same with its members: others may be called so, too."""
    called = label(communicator.name, communicator.description)
    return called if communicator.description == _WORLD else f"{called} ({name_ranks(communicator.members)})"


def ranks(numbers: Sequence[int], nodes: Mapping[int, str] | None = None) -> str:
    """Some ranks, with the nodes where they are if these are given."""
    shown = [
        str(number) if nodes is None else f"{number} on {nodes.get(number, '?')}" for number in numbers[:LISTED_MAX]
    ]
    more = f" and {len(numbers) - LISTED_MAX} more" if len(numbers) > LISTED_MAX else ""
    return f"rank{'s' if len(numbers) != 1 else ''} {', '.join(shown)}{more}"


def called(operation: Operation, *, with_type: bool = False) -> str:
    """What was called, without its number: ``all_reduce of 1000 elements``, or ``of 1000 float64 elements``."""
    root = f" from root {operation.root}" if operation.root >= 0 else ""
    kind = f"{_TYPES.get(operation.dtype, f'type {operation.dtype}')} " if with_type else ""
    of = f" of {operation.elements} {kind}elements" if operation.elements else ""
    return f"{written(operation.op)}{of}{root}"


def departure(found: Departure, communicators: Sequence[Communicator]) -> str:
    """Where a rank's program went another way: ``it called send to rank 3 ... where its earlier steps called ...``."""
    called = "its step was over" if found.called is None else f"it called {_call(found.called, communicators)}"
    usual = "were over" if found.usual is None else f"called {_call(found.usual, communicators)}"
    return f"{called} where its earlier steps {usual}"


def _call(call: Call, communicators: Sequence[Communicator]) -> str:
    direct = {Op.SEND: "to", Op.RECEIVE: "from"}
    other = f" {direct.get(Op(call.op), 'from root')} {call.root}" if call.root >= 0 else ""
    of = f" of {group(communicators[call.communicator])}" if 0 <= call.communicator < len(communicators) else ""
    return f"{written(call.op)}{other} ({call.bytes} bytes){of}"


def state(process: ProcessState | None) -> str:
    """What a process does, as a clause; empty if nothing is known."""
    if process is None:
        return ""
    letter = process.letter if process.letter in "TtZX" else process.main_thread or process.letter
    return f"its process {_LETTERS.get(letter, f'is in state {letter}')}"


def name_ranks(ranks: Iterable[int]) -> str:
    """``rank 3``, ``ranks 0-2,4-7``, ``ranks 3,11,..,995``; of a longer list the beginning, and how many they are."""
    ordered = sorted(set(ranks))
    parts = list(_parts(ordered))
    if len(ordered) == 1:
        return f"rank {ordered[0]}"
    if len(parts) <= _PARTS_MAX:
        return f"ranks {','.join(parts)}"
    return f"{len(ordered):,} ranks ({','.join(parts[: _PARTS_MAX // 2])},..)"


def _parts(ordered: Sequence[int]) -> Iterator[str]:
    """Runs and progressions, from left to right."""
    start = 0
    while start < len(ordered):
        stop = _end_of_progression(ordered, start)
        stride = ordered[start + 1] - ordered[start] if stop - start > 1 else 1
        if stride == 1:
            yield str(ordered[start]) if stop - start == 1 else f"{ordered[start]}-{ordered[stop - 1]}"
        elif stop - start >= _PROGRESSION_MIN:
            yield f"{ordered[start]},{ordered[start + 1]},..,{ordered[stop - 1]}"
        else:
            stop = start + 1
            yield str(ordered[start])
        start = stop


def _end_of_progression(ordered: Sequence[int], start: int) -> int:
    """Where the numbers from ``start`` on cease to be at equal distances."""
    if start + 1 >= len(ordered):
        return len(ordered)
    stride, stop = ordered[start + 1] - ordered[start], start + 2
    while stop < len(ordered) and ordered[stop] - ordered[stop - 1] == stride:
        stop += 1
    return stop

"""Pure: what a verdict's sentence is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftrain_launcher.detect.records import Op, Operation, ProcessState

LISTED_MAX = 8
_WRITTEN = {
    Op.ALL_GATHER_SINGLE: "all_gather_into_tensor",
    Op.REDUCE_SCATTER_SINGLE: "reduce_scatter_tensor",
    Op.RECEIVE: "recv",
    Op.RECEIVE_ANY: "recv from any",
}
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


def ranks(numbers: Sequence[int], nodes: Mapping[int, str] | None = None) -> str:
    """Some ranks, with the nodes where they are if these are given."""
    shown = [
        str(number) if nodes is None else f"{number} on {nodes.get(number, '?')}" for number in numbers[:LISTED_MAX]
    ]
    more = f" and {len(numbers) - LISTED_MAX} more" if len(numbers) > LISTED_MAX else ""
    return f"rank{'s' if len(numbers) != 1 else ''} {', '.join(shown)}{more}"


def called(operation: Operation) -> str:
    """What was called, without its number: ``all_reduce of 1000 elements``."""
    root = f" from root {operation.root}" if operation.root >= 0 else ""
    of = f" of {operation.elements} elements" if operation.elements else ""
    return f"{written(operation.op)}{of}{root}"


def state(process: ProcessState | None) -> str:
    """What a process does, as a clause; empty if nothing is known."""
    if process is None:
        return ""
    letter = process.letter if process.letter in "TtZX" else process.main_thread or process.letter
    return f"its process {_LETTERS.get(letter, f'is in state {letter}')}"

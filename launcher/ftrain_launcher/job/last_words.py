"""What a worker said at its end, in one line: of a traceback the error, also where its text has several lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ftrain.link import COMMUNICATION

_CHARACTERS_MAX = 200
_BEFORE = re.compile(r"(\[rank\d+\]:(?: |$))?(  [|+] )?")
"""torch's hook and exception groups write this before each line of a traceback."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f]")
_DUMP, _MODULES = "Fatal Python error: ", "Extension modules: "
"""Of faulthandler, which `record` switches on: what a library said before it aborted is of more use."""
_FRAME = "|+-~^ \t"
_OF_TORCH = {f"torch.distributed.Dist{what}Error" for what in ("", "Backend", "Network", "Store")}


def last_words(lines: Sequence[str]) -> str:
    """The error of the last traceback, if there is one, and the last line that says something, if that is another."""
    error, said = _error_and_rest(lines)
    last = said[:_CHARACTERS_MAX].strip()
    if not error:
        return last
    return error if error.endswith(last) else f"{error} ... {last}"


def misses_a_peer(lines: Sequence[str]) -> bool:
    """The last traceback ends with an error of communication: a peer is lost, or seems to be."""
    error, _ = _error_and_rest(lines)
    kind, _, text = error.partition(": ")
    return kind in _OF_TORCH or (kind == "RuntimeError" and COMMUNICATION.search(text) is not None)


def _error_and_rest(lines: Sequence[str]) -> tuple[str, str]:
    """The error of the last traceback, and the last line that says something."""
    dump = next((n for n, line in enumerate(lines) if line.startswith(_DUMP)), len(lines))
    lines = [line for line in lines[:dump] or lines[:1] if not line.startswith(_MODULES)]
    bare = [_CONTROL.sub("", line[_BEFORE.match(line).end() :]) for line in lines]  # type: ignore[union-attr]  # it does
    error, within = "", False
    for number, line in enumerate(bare):
        if "Traceback (most recent call last):" in line:
            within = True
        elif within and line and not line[0].isspace():
            error, within = line.strip(), False
            if error.endswith(":"):  # its text begins with an empty line
                error = " ".join([error, *filter(None, map(str.strip, bare[number + 1 :]))][:2])
            error = error[:_CHARACTERS_MAX]
    said = (line.strip(_FRAME) for line in reversed(bare))
    return error, next(filter(None, said), "")

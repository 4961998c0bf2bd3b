"""What a worker said at its end, in one line: of a traceback the error, also where its text has several lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CHARACTERS_MAX = 200
_BEFORE = re.compile(r"(\[rank\d+\]: )?(  [|+] )?")
"""torch's hook and exception groups write this before each line of a traceback."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f]")
_DUMP, _MODULES = "Fatal Python error: ", "Extension modules: "
"""Of faulthandler, which `record` switches on: what a library said before it aborted is of more use."""
_FRAME = "|+-~^ \t"


def last_words(lines: Sequence[str]) -> str:
    """The error of the last traceback, if there is one, and the last line that says something, if that is another."""
    dump = next((n for n, line in enumerate(lines) if line.startswith(_DUMP)), len(lines))
    lines = [line for line in lines[:dump] or lines[:1] if not line.startswith(_MODULES)]
    error, within = "", False
    for line in lines:
        bare = _CONTROL.sub("", line[_BEFORE.match(line).end() :])  # type: ignore[union-attr]  # it matches anything
        if "Traceback (most recent call last):" in bare:
            within = True
        elif within and bare and not bare[0].isspace():
            error, within = bare.strip()[:_CHARACTERS_MAX], False
    said = (_CONTROL.sub("", line).strip(_FRAME) for line in reversed(lines))
    last = _BEFORE.sub("", next(filter(None, said), ""), count=1)[:_CHARACTERS_MAX].strip()
    return f"{error} ... {last}" if error and last != error else last

"""What a script's ``torch.distributed.elastic.multiprocessing.errors.record`` writes down of its exception."""

from __future__ import annotations

from pathlib import Path

import msgspec

BYTES_MAX = 1 << 20


class _Extra(msgspec.Struct):
    py_callstack: str = ""


class _Message(msgspec.Struct):
    message: str
    extra: _Extra = msgspec.field(default_factory=_Extra, name="extraInfo")


class _File(msgspec.Struct):
    message: _Message | str


def lines_of(path: Path, count: int) -> list[str]:
    """The end of the traceback, or else what it says; nothing if there is no such file, or it is of another kind."""
    try:
        with path.open("rb") as file:
            told = msgspec.json.decode(file.read(BYTES_MAX), type=_File).message
    except (OSError, msgspec.DecodeError):
        return []
    text = told if isinstance(told, str) else told.extra.py_callstack.rstrip() or told.message
    return text.splitlines()[-count:]

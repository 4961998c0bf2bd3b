"""What a script's ``torch.distributed.elastic.multiprocessing.errors.record`` writes down of its exception."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

BYTES_MAX = 1 << 20
SUFFIX = ".error.json"
"""Of the file beside a rank's log."""
_VARIABLE = "TORCHELASTIC_ERROR_FILE"
_EXIT_CODE = 1
"""Of a script that an exception ended."""


class _Extra(msgspec.Struct):
    py_callstack: str = ""


class _Message(msgspec.Struct):
    message: str
    extra: _Extra = msgspec.field(default_factory=_Extra, name="extraInfo")


class _File(msgspec.Struct):
    message: _Message | str


class _Whole(msgspec.Struct):
    message: dict[str, Any] | str


def lines_of(path: Path, count: int) -> list[str]:
    """The end of the traceback, or else what it says; nothing if there is no such file, or it is of another kind."""
    try:
        told = msgspec.json.decode(_read(path), type=_File).message
    except (OSError, msgspec.DecodeError):
        return []
    text = told if isinstance(told, str) else told.extra.py_callstack.rstrip() or told.message
    return text.splitlines()[-count:]


def hand_on(logs: Path, since: float, environment: Mapping[str, str]) -> None:
    """Copy a failed job's first error to where its launcher was told to, as torchrun does for what started it.

    Looks at errors of this host, written after ``since`` (unix seconds), of the newest generation that has any.
    """
    if not (target := environment.get(_VARIABLE)):
        return
    errors: list[tuple[int, float, bytes]] = []
    for path in logs.glob(f"generation-*/*{SUFFIX}"):
        with contextlib.suppress(OSError, msgspec.DecodeError, ValueError):  # of another kind, or of no number
            if (written := path.stat().st_mtime) >= since:
                generation = int(path.parent.name.rpartition("-")[2])
                msgspec.json.decode(content := _read(path), type=_Whole)
                errors.append((-generation, written, content))
    if errors:
        told = msgspec.json.decode(min(errors)[2], type=dict[str, Any])
        if isinstance(told["message"], dict):  # some write a text there, which has no room for a code
            told["message"]["errorCode"] = _EXIT_CODE
        with contextlib.suppress(OSError):  # the job's end is told by its exit code, too
            Path(target).write_bytes(msgspec.json.encode(told))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BYTES_MAX)

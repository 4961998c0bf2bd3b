"""The daemon's log: one line per event, with its fields, on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import suppress


def log(event: str, **fields: object) -> None:
    """Write one line; a closed stderr is nobody's fault."""
    values = (f"{key}={_plain(value)}" for key, value in fields.items())
    with suppress(OSError, ValueError):
        print(f"time={time.time():.3f} event={event}", *values, file=sys.stderr, flush=True)


def _plain(value: object) -> str:
    text = str(value).replace("\n", " ")
    return f'"{text}"' if " " in text else text

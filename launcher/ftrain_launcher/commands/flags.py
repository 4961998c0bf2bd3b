"""How torchrun's flags are spelt: with underscores as well, and with ``PET_NAME`` as the default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

Add = Callable[..., Any]


def adder(parser: argparse.ArgumentParser) -> Add:
    """Like ``parser.add_argument``, but a flag may be written with underscores, and ``PET_NAME`` is its default."""

    def add(*names: str, **settings: Any) -> Any:
        flags = [name for name in names if name.startswith("--")]
        if not flags:
            return parser.add_argument(*names, **settings)
        made = parser.add_argument(*names, *(f"--{f[2:].replace('-', '_')}" for f in flags if "-" in f[2:]), **settings)
        value = os.environ.get(f"PET_{made.dest.upper()}")
        if value is not None and made.nargs != 0:
            made.default = value
        elif value is not None:
            made.default = value not in ("", "0")
        return made

    return add

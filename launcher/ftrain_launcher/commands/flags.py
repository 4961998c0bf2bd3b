"""How torchrun's flags are spelt: with underscores as well, and with ``PET_NAME`` as the default."""

from __future__ import annotations

import argparse
import copy
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
        value = os.environ.get(variable := f"PET_{made.dest.upper()}")
        if value is not None and made.nargs != 0:
            made.default, made.type = value, _reader(variable, value, made)
        elif value is not None:
            made.default = value not in ("", "0")
        return made

    return add


class Spelling(argparse.HelpFormatter):
    """Help that shows each flag once: with underscores it is the same one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(_once(action))

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        return super()._format_usage(usage, [_once(action) for action in actions], groups, prefix)


def _once(action: argparse.Action) -> argparse.Action:
    shown = copy.copy(action)
    shown.option_strings = [word for word in action.option_strings if "_" not in word]
    return shown


def _reader(variable: str, default: str, made: argparse.Action) -> Callable[[str], Any]:
    """What argparse reads the flag with: it says where a bad default comes from, and holds that to the choices."""
    convert: Callable[[str], Any] = made.type if callable(made.type) else str

    def read(text: str) -> Any:
        where = f"{variable}={text}" if text is default else f"invalid value: {text!r}"
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{where}: give a number") from None
        if text is default and made.choices is not None and value not in made.choices:
            raise argparse.ArgumentTypeError(f"{where}: choose from {', '.join(map(str, made.choices))}")
        return value

    return read

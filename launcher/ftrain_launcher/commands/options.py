"""Options that operators' commands share, and how they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command adds itself; argparse has no public name for it."""


def add_command(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int], about: str
) -> argparse.ArgumentParser:
    """A command's own parser. ``about``: one sentence for people."""
    parser = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(command=command)
    return parser


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """``--job`` and ``--json``."""
    parser.add_argument("--job", metavar="NAME", help="which job; default: the newest that runs")
    parser.add_argument("--json", action="store_true", help="print JSON, as documented in docs/operations.md")


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()

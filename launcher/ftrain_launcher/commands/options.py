"""Options that operators' commands share, and how they print."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

Job = Annotated[str | None, typer.Option(help="Which job; default: the newest that runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as documented in docs/operations.md.")]


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()

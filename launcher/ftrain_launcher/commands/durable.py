"""What users write about durable checkpoints on the command line of ``ftrain run``, checked, the storage included."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ftrain_launcher.commands import checks
from ftrain_launcher.errors import UsageError

if TYPE_CHECKING:
    from ftrain_launcher.work import Durable

_EVERY = 100
_KEEP = 2


def add_options(add: Callable[..., object]) -> None:
    """The three options."""
    add("--durable", metavar="URL", help="checkpoints on storage: a folder, s3://, gs://, ...; resumes from the newest")
    add("--durable-every", type=int, metavar="N", help=f"steps between them; default {_EVERY}")
    add("--durable-keep", type=int, metavar="K", help=f"how many complete ones stay; default {_KEEP}")


def durable(chosen: argparse.Namespace) -> Durable | None:
    """What was asked for; None: nothing. Raises UsageError, also where the storage does not take a file."""
    from ftrain_launcher.node.durable_search import search
    from ftrain_launcher.work import Durable

    for flag, value in (("--durable-every", chosen.durable_every), ("--durable-keep", chosen.durable_keep)):
        if value is not None:
            checks.at_least(flag, value, 1)
    if chosen.durable is None:
        return None
    url = absolute(chosen.durable)
    found = search(url, probe=True)
    if found.failure:
        raise UsageError(found.failure)
    return Durable(url=url, every=chosen.durable_every or _EVERY, keep=chosen.durable_keep or _KEEP)


def absolute(url: str) -> str:
    """A URL, or a path made absolute, since agents and writers run elsewhere."""
    if not url.strip():
        raise UsageError("--durable: give a folder or a URL like s3://bucket/folder")
    protocol, mark, place = url.partition("://")
    if mark and not (protocol and place.strip("/")):
        raise UsageError(f"--durable {url}: a URL names a protocol and a place, like s3://bucket/folder")
    if mark or "::" in url:
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url))

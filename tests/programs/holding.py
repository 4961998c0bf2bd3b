"""Ranks that wait before some steps until the test lets them go on, so that it knows which snapshot is the newest."""

import argparse
import time
from pathlib import Path

HOLD_SECONDS_MAX = 400.0


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--hold STEP ...``"""
    parser.add_argument("--hold", type=int, nargs="*", default=[])


def hold(args: argparse.Namespace, step: int) -> None:
    """Wait before ``step``, if it is one of these, for a file ``go-STEP`` in the output folder."""
    if step in args.hold:
        wait_until_let(args.out / f"go-{step}")


def wait_until_let(marker: Path) -> None:
    """Until there is such a file."""
    deadline = time.monotonic() + HOLD_SECONDS_MAX
    while not marker.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody made {marker}")
        time.sleep(0.005)

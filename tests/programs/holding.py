"""Ranks that wait before some steps until the test lets them go on, so that it knows which snapshot is the newest."""

import argparse
import time

HOLD_SECONDS_MAX = 120.0


def add_argument(parser: argparse.ArgumentParser) -> None:
    """``--hold STEP ...``"""
    parser.add_argument("--hold", type=int, nargs="*", default=[])


def hold(args: argparse.Namespace, step: int) -> None:
    """Wait before ``step``, if it is one of these, for a file ``go-STEP`` in the output folder."""
    deadline = time.monotonic() + HOLD_SECONDS_MAX
    while step in args.hold and not (args.out / f"go-{step}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody let step {step} begin")
        time.sleep(0.005)

"""The ``ftrain`` command. It never loads torch, nor anything that a command does not need: it answers at once.

argparse, because it starts ten times faster than what could replace it, and ``ftrain status`` is asked on machines
that are busy training. Bad input ends with one line on stderr and exit code 2, from whichever command.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ftrain_launcher.errors import ControllerAway, JobHasEnded, LauncherError, UsageError
from ftrain_launcher.terminal import announce, nobody_reads

_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_AWAY = 6
_EXIT_INTERRUPTED = 130
_EXIT_PIPE = 141
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What a disk or a terminal says that takes no more."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """What a shortened flag may stand for. One that may stand for several is none of ours: it is the script's."""
        found: list[Any] = super()._get_option_tuples(option_string)
        return found[:1] if len({id(action) for action, *_ in found}) == 1 else []


class _Version(argparse.Action):
    """Looks for the version only when it is asked for."""

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"ftrain {version('ftrain')}\n")
        sys.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    # Not at the top: Ctrl-C while they load is to end like any other.
    from ftrain_launcher.commands import controller, doctor, flush, inject, nodes, plan, run, show, snapshots, trace

    parser = Parser(
        prog="ftrain",
        description="Keeps a torch.distributed job training through crashes, hangs and lost nodes.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (run, show, nodes, flush, snapshots, trace, doctor, plan, inject, controller):
        command.add_to(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _complete_streams()
    try:
        chosen = build_parser().parse_args(arguments)
        chosen.words = list(sys.argv[1:] if arguments is None else arguments)
        code = chosen.command(chosen)
        sys.stdout.flush()
    except JobHasEnded as error:
        code = _say(str(error), _EXIT_USAGE)
    except ControllerAway as error:
        code = _say(str(error), _EXIT_AWAY)
    except LauncherError as error:
        code = _say(str(error), _EXIT_USAGE)
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
    except BrokenPipeError:
        nobody_reads(sys.stdout)
        code = _EXIT_PIPE
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        nobody_reads(sys.stdout)
        code = _say(f"cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}", _EXIT_FAILED)
    sys.exit(code)


def _complete_streams() -> None:
    """Where one was closed (``>&-``) nothing is said; else the next file or socket would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  # for good


def _say(text: str, code: int) -> int:
    announce(f"error: {' '.join(text.split())}")
    return code


if __name__ == "__main__":
    main()

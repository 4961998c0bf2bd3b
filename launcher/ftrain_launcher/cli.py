"""The ``ftrain`` command. It never loads torch, so that it answers at once.

Bad input ends with one line on stderr and exit code 2, from whichever command.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from ftrain_launcher.commands import controller, inject, run, show
from ftrain_launcher.errors import ControllerAway, LauncherError, UsageError

app = typer.Typer(
    name="ftrain",
    help="Keeps a torch.distributed job training through crashes, hangs and lost nodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(run.run)
app.command("status")(show.status)
app.command("incidents")(show.incidents)
app.command("snapshots")(show.snapshots)
app.command("inject")(inject.inject)
app.command("controller")(controller.controller)

_EXIT_USAGE = 2
_EXIT_AWAY = 6


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        code = _say(error.format_message(), _EXIT_USAGE)
    except UsageError as error:
        code = _say(str(error), _EXIT_USAGE)
    except ControllerAway as error:
        code = _say(str(error), _EXIT_AWAY)
    except LauncherError as error:
        code = _say(str(error), _EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        code = 141
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str, code: int) -> int:
    line = " ".join(text.split())
    sys.stderr.write(f"ftrain: error: {line}\n")
    return code


if __name__ == "__main__":
    main()

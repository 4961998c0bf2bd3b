"""What tests start their own programs with."""

from __future__ import annotations

import os
import sys


def environment(**more: str) -> dict[str, str]:
    """This process's, for a Python that can import all that this one can, what pytest has put there, too."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), **more}

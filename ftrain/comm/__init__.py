"""The recorder of a worker's communication (docs/recorder.md): `worker` starts it, agents read its `ring` from outside.

Nothing is imported here, and nothing in `ring` loads torch, since agents read it.
"""

from __future__ import annotations

from pathlib import Path

STARTUP_FOLDER = Path(__file__).parent / "startup"
"""In front of PYTHONPATH, it starts the recorder in a new interpreter, before the script (its ``sitecustomize``)."""

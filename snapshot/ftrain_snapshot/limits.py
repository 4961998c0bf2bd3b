"""What a process may use."""

from __future__ import annotations

import resource


def allow_many_sockets() -> None:
    """As many as this user may have: a large job has more nodes than the 1,024 files that most shells allow."""
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

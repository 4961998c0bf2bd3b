"""Whoever gives way to training does so on a kernel that schedules sessions against each other, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ftrain_snapshot.priority import NICENESS

AUTOGROUP = Path("/proc/self/autogroup")
PROGRAM = f"""
import json
import os
from pathlib import Path
from ftrain_snapshot.priority import give_way
session = Path({str(AUTOGROUP)!r})
before = session.read_text()
give_way()
print(json.dumps([os.nice(0), before, session.read_text()]))
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_process_gives_way_and_takes_its_session_along_if_it_is_alone(own_session: bool) -> None:
    command = [sys.executable, "-c", PROGRAM]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=own_session)
    nice, before, after = json.loads(shown.stdout)
    assert nice == NICENESS
    if own_session:
        assert after.split() == [before.split()[0], "nice", str(NICENESS)]
        assert before != after
    else:
        assert before == after  # empty where the session has no group of its own, such as a container's first

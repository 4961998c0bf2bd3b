"""Whoever gives way to training does so on a kernel that schedules sessions against each other, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftrain_snapshot.priority import NICENESS

AUTOGROUP = Path("/proc/self/autogroup")
PROGRAM = f"""
import os
from pathlib import Path
from ftrain_snapshot.priority import give_way
before = Path({str(AUTOGROUP)!r}).read_text()
give_way()
print(os.nice(0), before, Path({str(AUTOGROUP)!r}).read_text())
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_process_gives_way_and_takes_its_session_along_if_it_is_alone(own_session: bool) -> None:
    command = [sys.executable, "-c", PROGRAM]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=own_session)
    nice, before, after = shown.stdout.split("/autogroup-")
    assert int(nice) == NICENESS
    assert (before.split()[-1] != after.split()[-1]) == own_session
    assert not own_session or int(after.split()[-1]) == NICENESS

"""Whoever gives way to training does so on a kernel that schedules sessions against each other, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snapshot_nodes import Cluster, cluster_root

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


TURNS = f"""
import json
import os
from pathlib import Path
from ftrain_snapshot.priority import Turns
turns = Turns()
shown = []
for behind in (True, False, True):
    done = turns.set(behind)
    shown.append((done, os.getpriority(os.PRIO_PROCESS, 0), Path({str(AUTOGROUP)!r}).read_text()))
print(json.dumps(shown))
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take a nice value back")
def test_a_process_takes_it_back_and_gives_way_again() -> None:
    command = ["nice", "-n", "3", sys.executable, "-c", TURNS]
    usual = 3 + os.getpriority(os.PRIO_PROCESS, 0)
    shown = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    for (done, nice, session), behind in zip(json.loads(shown.stdout), (True, False, True), strict=True):
        assert (done, nice) == (True, usual + NICENESS * behind)
        assert session.split()[1:] == ["nice", str(NICENESS * behind)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take a nice value back")
def test_a_daemon_takes_it_back_for_what_the_job_waits_for_and_for_no_question_beside_training() -> None:
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    for root in cluster_root():
        cluster = Cluster(root, 1)
        (node,) = cluster.nodes
        for _ in range(3):  # as with an agent's heartbeats
            node.agent.status()
            node.agent.inventory()
            assert os.getpriority(os.PRIO_PROCESS, node.process.pid) == usual + NICENESS
        node.agent.inventory(urgent=True)
        assert os.getpriority(os.PRIO_PROCESS, node.process.pid) == usual
        cluster.stop()

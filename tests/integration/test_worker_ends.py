"""However a training function ends, the agent hears of it once and the exit code says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.worker_node import Forker, Node
from processes import environment

from ftrain.link import Failed, Finished, FirstStep, Hello, OutOfMemory, Restored

ENDS = Path(__file__).with_name("worker_ends.py")


@pytest.fixture
def node(forker: Forker, tmp_path: Path) -> Iterator[Node]:
    with Node(forker, tmp_path / "node", 1) as node:
        yield node


def kinds(node: Node) -> list[type]:
    return [type(message) for message in node.agent.messages]


def test_a_run_tells_how_it_goes(node: Node) -> None:
    assert node.run(ENDS, "whole") == [0], node.output(0)
    assert kinds(node) == [Hello, Restored, FirstStep, Finished]
    assert node.agent.of(Restored)[0].version is None
    assert node.agent.of(FirstStep)[0].step == 0
    assert node.newest.version == 3
    assert node.daemon.control.progress(0)[0] == 3
    assert node.output(0).splitlines()[0] == "step=0 loss=0.333333333 done"


def test_a_user_error_is_reported_once_with_step_and_traceback(node: Node) -> None:
    assert node.run(ENDS, "raise") == [1]
    [failed] = node.agent.of(Failed)
    assert (failed.step, failed.error, failed.communication) == (1, "LookupError: no such thing", False)
    assert "worker_ends.py" in failed.traceback
    assert "Traceback" not in node.output(0)
    assert node.newest.version == 0


def test_a_lost_peer_is_told_apart(node: Node) -> None:
    assert node.run(ENDS, "peer") == [1]
    assert node.agent.of(Failed)[0].communication


@pytest.mark.parametrize(("way", "code"), [("exit3", 3), ("exit0", 0), ("terminated", 143), ("interrupted", 130)])
def test_codes_pass_through(node: Node, way: str, code: int) -> None:
    assert node.run(ENDS, way) == [code]
    assert node.agent.of(Failed) == []
    assert (Finished in kinds(node)) == (code == 0)


def test_a_value_that_cannot_be_kept_is_refused_by_name(node: Node) -> None:
    assert node.run(ENDS, "opaque") == [1]
    error = node.agent.of(Failed)[0].error
    assert "cannot track opaque.handlers[1] (function)" in error


def test_too_little_memory_is_told_with_both_figures(node: Node) -> None:
    node.daemon.room_bytes = 100
    assert node.run(ENDS, "whole") == [1]
    [told] = node.agent.of(OutOfMemory)
    assert told.needed_bytes > told.available_bytes == 100
    assert FirstStep not in kinds(node)


def test_a_state_that_outgrows_the_arena_skips_one_version(node: Node) -> None:
    assert node.run(ENDS, "grow") == [0], node.output(0)
    assert [snapshot.version for snapshot in node.daemon.skips] == [1]
    assert [snapshot.version for snapshot in node.daemon.sealed] == [0, 2, 3]


def test_snapshots_come_as_often_as_asked_and_at_the_end(node: Node) -> None:
    assert node.run(ENDS, "whole", every=3) == [0]
    assert [snapshot.version for snapshot in node.daemon.sealed] == [2, 3]


def test_a_resumed_run_that_was_done_does_no_step_again(node: Node) -> None:
    assert node.run(ENDS, "whole") == [0]
    assert node.run(ENDS, "whole", restore=node.newest) == [0], node.output(0)
    assert node.output(0) == ""
    assert node.agent.of(Restored)[-1].version == 3


def test_without_an_agent_a_user_error_goes_to_the_log(node: Node) -> None:
    node.agent.close()
    assert node.run(ENDS, "raise") == [1]
    assert "LookupError: no such thing" in node.output(0)


def test_under_torchrun_and_python_it_trains_with_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ENDS), "whole"], env=environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss=0.333333333") == 4
    assert done.stderr.count("nothing protects this training") == 1

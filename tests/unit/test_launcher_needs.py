"""Options that act only beside others: refused without them, warned of where only nodes lack."""

from __future__ import annotations

import pytest

from ftrain_launcher.cli import build_parser
from ftrain_launcher.commands import needs
from ftrain_launcher.errors import UsageError


@pytest.mark.parametrize(
    ("alone", "says", "beside"),
    [
        ("--shrink-after-seconds 30", "--shrink-after-seconds 30: only with MIN:MAX nodes", "--local-nodes 3:4"),
        ("--local-nodes 4 --shrink-after-seconds 30", "only with MIN:MAX nodes", ""),
        ("--nnodes 4 --shrink-after-seconds .5", "--shrink-after-seconds 0.5: only with", "--nnodes 3:4"),
        ("--abort-grace-seconds 2", "--abort-grace-seconds 2: only with --in-process", "--in-process"),
        ("--abort-grace-seconds 1 --no-in-process", "only with --in-process or --standby", "--in-process"),
        ("--abort-grace-seconds 1", "only with --in-process or --standby", "--standby 1"),
        ("--durable-every 5", "--durable-every 5: say with --durable URL", "--durable /tmp"),
        ("--durable-keep 5", "--durable-keep 5: say with --durable URL", "--durable /tmp"),
        ("--isolate-slow --detect warn", "--isolate-slow: only with --detect act", "--detect act"),
        ("--check-replicas 10 --detect off", "--check-replicas 10: not with --detect off", "--detect warn"),
        ("--check-replicas 10 --detect off", "give 0", "--check-replicas 0"),
        ("--codec numpy --parity 0", "--codec numpy: not with --parity 0", "--parity 1"),
        ("--protect-bandwidth 1M --parity 0", "--protect-bandwidth 1M: not with --parity 0", "--parity 1"),
        ("--isolate-slow --parity 0", "--isolate-slow: not with --parity 0", "--parity 1"),
        ("--ray-address h:1", "--ray-address h:1: only with --engine ray", "--engine ray"),
        ("--ray-per-worker CPU=2", "--ray-per-worker CPU=2: only with --engine ray", "--engine host"),
        ("--local-nodes 2 --engine host", "--local-nodes 2: only with --engine local", "--engine local"),
        ("--local-nodes 2 --engine ray", "the machines are Ray's choice", "--engine local"),
        ("--controller h:1 --engine ray", "the machines are Ray's choice", "--engine host"),
        ("--controller-candidates a,b --engine ray", "the machines are Ray's choice", "--engine host"),
        ("--node-rank 0 --engine ray", "--node-rank 0: with --engine ray", "--engine host"),
        ("--failure-domain r --engine ray", "the machines are Ray's choice", "--engine host"),
        ("--node-rank 0 --engine none", "--node-rank 0: not with --engine none", "--engine host"),
        ("--node-rank 1 --engine none", "--node-rank 1: not with --engine none", "--engine host"),
        ("--failure-domain r --engine none", "--failure-domain r: not with --engine none", "--engine host"),
    ],
)
def test_an_option_that_could_do_nothing(alone: str, says: str, beside: str) -> None:
    with pytest.raises(UsageError) as refused:
        needs.check(build_parser().parse_args(["run", *alone.split(), "train.py"]))
    assert says in str(refused.value)
    if beside:
        needs.check(build_parser().parse_args(["run", *alone.split(), *beside.split(), "train.py"]))


def test_what_asks_for_nothing_lacks_nothing() -> None:
    words = "--shrink-after-seconds 0 --codec auto --parity 0 --standby 0 --check-replicas 0 --detect off"
    needs.check(build_parser().parse_args(["run", *words.split(), "train.py"]))


def test_a_single_node_is_told_what_acts_between_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """Not refused: launch scripts have one line for one node and for many."""
    chosen = build_parser().parse_args(["run", "--codec", "numpy", "--isolate-slow", "train.py"])
    needs.check(chosen)
    needs.warn(chosen, 2)
    assert capsys.readouterr().err == ""
    needs.warn(chosen, 1)
    assert capsys.readouterr().err == (
        "ftrain: warning: --codec numpy: without effect on a single node\n"
        "ftrain: warning: --isolate-slow: without effect on a single node\n"
    )

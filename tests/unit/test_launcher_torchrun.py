"""torchrun's flags on ``ftrain run``: taken for what they mean, or refused in one line that says what to use."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from ftrain_launcher import cli
from ftrain_launcher.commands import torchrun
from ftrain_launcher.errors import UsageError
from ftrain_launcher.processes import error_file
from ftrain_launcher.processes.streams import STDERR, STDOUT, Streams


def parsed(*flags: str, script: str = "train.py") -> argparse.Namespace:
    chosen = cli.build_parser().parse_args(["run", *flags, script])
    torchrun.settle(chosen)
    return chosen


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--nproc_per_node=3",), "nproc_per_node", "3"),
        (("--standalone", "--nnodes", "4"), "nnodes", "1"),
        (("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:7000"), "controller", "10.0.0.1:7000"),
        (("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1"), "controller", "10.0.0.1:29400"),
        (("--nnodes=2", "--master_addr=10.0.0.1"), "controller", "10.0.0.1:29500"),
        (("--nnodes=1:2", "--master-addr=h", "--master-port=9"), "controller", "h:9"),
        (("--nnodes=2", "--master-addr=h", "--controller=g:1"), "controller", "g:1"),
        (("--master_addr=127.0.0.1", "--master_port=29500"), "controller", None),
        (("--rdzv-id=run/7",), "name", "run-7"),
        (("--rdzv-conf=join_timeout=30,last_call_timeout=1",), "join_timeout_seconds", 30.0),
        (("--rdzv-conf", "keep_alive_interval=2,keep_alive_max_attempt=4"), "heartbeat_timeout_seconds", 8.0),
        (("--monitor-interval=0.5", "--start-method=fork", "--event-log-handler=null"), "script", "train.py"),
        (("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT",), "script", "train.py"),
        (("--shutdown-timeout=9",), "shutdown_timeout", 9.0),
    ],
)
def test_what_they_mean(flags: tuple[str, ...], name: str, value: object) -> None:
    assert getattr(parsed(*flags), name) == value


@pytest.mark.parametrize(
    ("flags", "instead"),
    [
        (("--rdzv-backend=etcd",), "--controller HOST:PORT"),
        (("--rdzv-conf=cert=x",), "no such setting"),
        (("--rdzv-conf=timeout=soon",), "give seconds"),
        (("--event-log-handler=console",), "ftrain incidents"),
        (("--logs-specs=mine",), "--redirects"),
        (("--duplicate-stdout-filters=loss",), "--log-dir"),
        (("--numa-binding=node",), "numactl"),
        (("--virtual-local-rank",), "set_device"),
        (("--signals-to-handle=SIGTERM,SIGUSR1",), "SIGUSR1"),
        (("-m", "--no-python"), "one of them"),
        (("--run-path",), "whole path"),
    ],
)
def test_what_is_refused_says_what_to_use(flags: tuple[str, ...], instead: str) -> None:
    with pytest.raises(UsageError, match=instead) as refused:
        parsed(*flags)
    assert "\n" not in str(refused.value)


def test_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NPROC_PER_NODE", "4")
    monkeypatch.setenv("PET_MAX_RESTARTS", "2")
    monkeypatch.setenv("PET_MODULE", "1")
    monkeypatch.setenv("PET_NO_PYTHON", "0")
    chosen = parsed()
    assert (chosen.nproc_per_node, chosen.max_restarts, chosen.module, chosen.no_python) == ("4", 2, True, False)
    assert parsed("--nproc-per-node=1").nproc_per_node == "1"


def test_what_a_script_is() -> None:
    kinds = [torchrun.kind(parsed(*flags, script="/a/b.py")) for flags in ((), ("-m",), ("--no-python",))]
    assert kinds == ["script", "module", "exec"]
    assert torchrun.kind(parsed("--no-python", "--run-path", script="/a/b.py")) == "script"


def test_what_the_terminal_shows() -> None:
    streams = torchrun.streams(parsed("--redirects", "3", "--tee", "0:1,1:2", "--local-ranks-filter", "0,1"))
    shown = [(lane, streams.shows(lane, STDOUT), streams.shows(lane, STDERR)) for lane in range(3)]
    assert shown == [(0, True, False), (1, False, True), (2, False, False)]
    assert streams.apart
    assert not Streams().apart
    assert Streams().shows(5, STDERR)
    for flags in (("-r", "4"), ("-t", "0:1;1:2"), ("--local-ranks-filter", "all")):
        with pytest.raises(UsageError):
            torchrun.streams(parsed(*flags))


def test_what_record_wrote(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    assert error_file.lines_of(path, 5) == []
    path.write_text("{")
    assert error_file.lines_of(path, 5) == []
    extra = {"py_callstack": "Traceback\n  line 3\nValueError: three", "timestamp": "1"}
    path.write_text(json.dumps({"message": {"message": "ValueError: three", "extraInfo": extra}}))
    assert error_file.lines_of(path, 2) == ["  line 3", "ValueError: three"]
    path.write_text(json.dumps({"message": "Signal 9 received"}))
    assert error_file.lines_of(path, 2) == ["Signal 9 received"]

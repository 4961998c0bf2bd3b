"""torchrun's flags on ``ftrain run``: taken for what they mean, or refused in one line that says what to use."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path

import msgspec
import pytest
from torch.distributed.run import get_args_parser
from unit.coordinator_job import Job, config

from ftrain_launcher import cli
from ftrain_launcher.commands import devices, output, torchrun
from ftrain_launcher.errors import UsageError
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_PROGRAM
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
        (("--nnodes=2", "--rdzv-endpoint=[::1]"), "controller", "[::1]:29400"),
        (("--nnodes=2", "--rdzv-endpoint=[::1]:7"), "controller", "[::1]:7"),
        (("--rdzv-conf=heartbeat_timeout=5,read_timeout=9",), "heartbeat_timeout_seconds", 10.0),
        (("--rdzv-id=run/7",), "name", "run-7"),
        (("--rdzv-conf=join_timeout=30,last_call_timeout=1",), "join_timeout_seconds", 30.0),
        (("--rdzv-conf", "keep_alive_interval=2,keep_alive_max_attempt=4"), "heartbeat_timeout_seconds", 8.0),
        (("--monitor-interval=0.5", "--start-method=fork", "--event-log-handler=null"), "script", "train.py"),
        (("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT",), "script", "train.py"),
        (("--shutdown-timeout=9",), "shutdown_timeout", 9.0),
        ((), "max_restarts", None),
        ((), "shutdown_timeout", 5.0),
        (("--rdzv-conf='join_timeout=5,last_call_timeout=1,timeout=5'",), "join_timeout_seconds", 5.0),
        (("--rdzv-conf=last_call_timeout=1",), "last_call_seconds", 1.0),
        (("--rdzv-id=" + "a" * 60,), "name", "a" * 39 + "-11ee3912"),
        (("--rdzv-id=none",), "name", None),
        (("--standalone", "--rdzv-id=run7"), "name", None),
        (("--logs-specs=default",), "script", "train.py"),
        (("--run-path", "--no-python", "-m"), "script", "train.py"),
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
        (("--numa-binding=near",), "invalid choice"),
        (("--numa-binding=node", "--standby=1"), "--standby"),
        (("--virtual-local-rank", "--standby=1"), "--standby"),
        (("--virtual-local-rank", "--in-process"), "--in-process"),
        (("--signals-to-handle=SIGTERM,SIGWINCH",), "--signals-to-handle SIGWINCH: there are SIGTERM"),
        (("--start-method=thread",), "invalid choice"),
        (("-m", "--no-python"), "one of them"),
        (("--nnodes=2", "--rdzv-endpoint=10.0.0.1:"), "--rdzv-endpoint 10.0.0.1:: give HOST or HOST:PORT"),
        (("--nnodes=2", "--rdzv-endpoint=:29400"), "--rdzv-endpoint :29400: give HOST"),
        (("--nnodes=2", "--rdzv-endpoint=::1"), "in brackets"),
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


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PET_MAX_RESTARTS", "few", "PET_MAX_RESTARTS=few: give a number"),
        ("PET_START_METHOD", "thread", "PET_START_METHOD=thread: choose from spawn, fork, forkserver"),
        ("PET_DETECT", "all", "PET_DETECT=all: choose from act"),
        ("PET_NUMA_BINDING", "near", "PET_NUMA_BINDING=near: choose from node"),
    ],
)
def test_a_variable_is_held_to_what_its_flag_is(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says):
        parsed()


def test_every_flag_of_torchrun_is_known() -> None:
    """Given torch's own parser, when each of its flags is given here, spelt in any way, then it is not unknown."""
    theirs = get_args_parser()
    ours = {word for action in run_parser()._actions for word in action.option_strings}
    assert {word for action in theirs._actions for word in action.option_strings} - ours == set()
    dests = {action.dest for action in run_parser()._actions}
    assert {action.dest for action in theirs._actions if action.option_strings} - dests == set()  # PET_ variables


def run_parser() -> argparse.ArgumentParser:
    [commands] = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    parser: argparse.ArgumentParser = commands.choices["run"]
    return parser


def test_a_shortened_flag_is_taken_where_it_is_clear() -> None:
    chosen = parsed("--nproc=3", "--redirect=3", "--max", "2", "--virtual_local")
    assert (chosen.nproc_per_node, chosen.redirects, chosen.max_restarts, chosen.virtual_local_rank) == (
        ("3", "3", 2, True)
    )
    with pytest.raises(UsageError, match="unrecognized arguments: --rdzv=1"):
        parsed("--rdzv=1")
    script = ("train.py", "--rdzv", "--no", "--nproc=7")
    chosen = cli.build_parser().parse_args(["run", *script])
    assert ("train.py", *chosen.arguments) == script
    assert chosen.nproc_per_node == "1"


def test_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "12")
    assert parsed().shutdown_timeout == 12
    assert parsed("--shutdown-timeout=0").shutdown_timeout == 0
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="TORCH_ELASTIC_SHUTDOWN_TIMEOUT=soon"):
        parsed()
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    monkeypatch.setenv("PYTHON_EXEC", "/opt/python")
    assert parsed("--no-python")
    with pytest.raises(UsageError, match="run ftrain by that Python"):
        parsed()


@pytest.mark.parametrize(
    ("flags", "hosts", "port"),
    [
        (("--master-addr=localhost", "--master-port=29500"), False, 29500),
        (("--master-port=29500", "--nnodes=1:1", "--node-rank=0"), False, 29500),
        (("--master-addr=localhost",), False, 0),
        (("--master-port=29500", "--standalone"), False, 0),
        (("--master-port=29500", "--rdzv-backend=c10d"), False, 0),
        (("--master-port=29500", "--local-nodes=2"), False, 0),
        (("--master-addr=h", "--master-port=29500", "--nnodes=2"), True, 0),
    ],
)
def test_where_the_store_of_one_node_listens(flags: tuple[str, ...], hosts: bool, port: int) -> None:
    assert torchrun.store_port(parsed(*flags), hosts=hosts) == port


def test_signals_that_end_the_job_besides() -> None:
    assert torchrun.signals(parsed()) == ()
    assert torchrun.signals(parsed("--signals-to-handle=SIGTERM, SIGUSR2")) == (signal.SIGUSR2,)


def test_workers_are_told_of_the_signals() -> None:
    name = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    assert torchrun.variables(parsed()) == {name: "SIGTERM,SIGINT,SIGHUP,SIGQUIT"}
    assert torchrun.variables(parsed("--signals-to-handle=SIGTERM,SIGUSR2")) == {name: "SIGTERM,SIGUSR2"}


def test_scripts_are_told_the_id_as_it_was_given() -> None:
    name = "TORCHELASTIC_RUN_ID"
    assert torchrun.variables(parsed("--rdzv-id=run/7"))[name] == "run/7"
    assert name not in torchrun.variables(parsed("--rdzv-id=run/7", "--name=other"))
    assert name not in torchrun.variables(parsed("--rdzv-id=run/7", "--standalone"))


def test_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert devices.virtual_local_rank(True, 2)
    assert not devices.virtual_local_rank(False, 3)
    with pytest.raises(UsageError, match="3 workers, but CUDA_VISIBLE_DEVICES=0,1"):
        devices.virtual_local_rank(True, 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices.virtual_local_rank(True, 3)


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 4), ("0,2", 2), ("", 0), ("-1", 0), ("1,-1,2", 1), ("3,4", 1), ("GPU-8a,GPU-9b", 2), (" 1 , 0", 2)],
)
def test_gpus_that_are_visible_are_counted(visible: str | None, count: int) -> None:
    assert devices.visible_gpus(4, visible) == count


def test_what_a_script_is() -> None:
    kinds = [torchrun.kind(parsed(*flags, script="/a/b.py")) for flags in ((), ("-m",), ("--no-python",))]
    assert kinds == ["script", "module", "exec"]
    assert torchrun.kind(parsed("--no-python", "--run-path", script="/a/b.py")) == "script"


def test_what_the_terminal_shows() -> None:
    streams = output.streams(parsed("--redirects", "3", "--tee", "0:1,1:2", "--local-ranks-filter", "0,1"))
    shown = [(lane, streams.shows(lane, STDOUT), streams.shows(lane, STDERR)) for lane in range(3)]
    assert shown == [(0, True, False), (1, False, True), (2, False, False)]
    assert streams.apart
    assert not Streams().apart
    assert Streams(split=True).apart
    assert Streams().shows(5, STDERR)
    for flags in (("-r", "4"), ("-t", "0:1;1:2"), ("--local-ranks-filter", "all")):
        with pytest.raises(UsageError):
            output.streams(parsed(*flags))


def test_what_is_in_front_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.streams(parsed()).prefix_of(5, 1, "trainer") == "[rank 5] "
    monkeypatch.setenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "$role_name${local_rank}/${rank} ${other}: ")
    assert output.streams(parsed()).prefix_of(5, 1, "trainer") == "trainer1/5 ${other}: "
    monkeypatch.setenv("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "")
    assert output.streams(parsed()).prefix_of(5, 1, "trainer") == ""


def test_words_whose_lines_are_copied() -> None:
    streams = output.streams(parsed("--duplicate-stdout-filters=loss,a,,b", "--duplicate_stderr_filters", "Error"))
    assert streams.words(STDOUT) == ("loss", "a,b")
    assert streams.words(STDERR) == ("Error",)
    assert streams.apart
    assert output.streams(parsed()).words(STDOUT) == ()


def test_a_log_folder_is_one(tmp_path: Path) -> None:
    assert output.log_folder(parsed()) is None
    assert output.log_folder(parsed(f"--log-dir={tmp_path}/new/one")) == tmp_path / "new" / "one"
    (tmp_path / "file").touch()
    for folder, says in (("/dev/null", "/dev/null: is no folder"), (f"{tmp_path}/file/logs", "/file is no folder")):
        with pytest.raises(UsageError, match=says):
            output.log_folder(parsed(f"--log-dir={folder}"))
    with pytest.raises(UsageError, match=r"/proc/logs: (it cannot be made|no right to write)"):
        output.log_folder(parsed("--log-dir=/proc/logs"))


@pytest.mark.parametrize(("chosen", "restarts"), [(True, 2), (False, 1)])
def test_as_many_restarts_as_were_chosen(chosen: bool, restarts: int) -> None:
    plain = config(max_restarts=2)
    job = Job(msgspec.structs.replace(plain, work=msgspec.structs.replace(plain.work, restarts_chosen=chosen)))
    job.run()
    for _ in range(restarts):
        job.exit(1, code=3)
        job.stop_all()
        assert job.coordinator.phase is Phase.RUNNING
    job.exit(1, code=3)
    job.stop_all()
    assert job.coordinator.exit_code == EXIT_PROGRAM


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


def error_of(path: Path, text: str, written: float) -> None:
    path.parent.mkdir(exist_ok=True)
    extra = {"py_callstack": f"Traceback\n{text}", "timestamp": "1"}
    path.write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))
    os.utime(path, (written, written))


def test_the_first_error_of_the_last_generation_is_handed_on(tmp_path: Path) -> None:
    target = tmp_path / "reply.json"
    told = {"TORCHELASTIC_ERROR_FILE": str(target)}
    error_file.hand_on(tmp_path, 0.0, told)
    assert not target.exists()
    (tmp_path / "generation-9").mkdir()
    (tmp_path / "generation-9" / "rank-0.error.json").write_text('{"code": "of another kind"}')
    error_of(tmp_path / "generation-1" / "rank-0.error.json", "old", 5.0)
    error_of(tmp_path / "generation-2" / "rank-0.error.json", "second", 7.5)
    error_of(tmp_path / "generation-2" / "rank-1.error.json", "first", 7.0)
    error_file.hand_on(tmp_path, 0.0, {})
    assert not target.exists()
    error_file.hand_on(tmp_path, 0.0, told)
    message = json.loads(target.read_text())["message"]
    assert (message["message"], message["errorCode"], message["extraInfo"]["timestamp"]) == ("first", 1, "1")
    target.unlink()
    error_file.hand_on(tmp_path, 8.0, told)  # all of an older job in the same folder
    assert not target.exists()


def test_an_error_that_is_a_text_is_handed_on_as_it_was_written(tmp_path: Path) -> None:
    written = {"message": "only a text", "timestamp": 10}
    (tmp_path / "generation-1").mkdir()
    (tmp_path / "generation-1" / "rank-0.error.json").write_text(json.dumps(written))
    error_file.hand_on(tmp_path, 0.0, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "reply.json")})
    assert json.loads((tmp_path / "reply.json").read_text()) == written

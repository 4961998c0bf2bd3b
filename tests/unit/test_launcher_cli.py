"""Bad input ends with one clear line on stderr and exit code 2, and starts nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from ftrain_launcher.cli import build_parser, main
from ftrain_launcher.commands import files, needs
from ftrain_launcher.commands.run import _new_name


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAIN_HOME", str(tmp_path / "home"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that was said; nothing may have been printed elsewhere, and no job been made."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("ftrain: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--bogus"], "--bogus"),
        (["--local-nodes", "0"], "--local-nodes 0: give a number of nodes, 1 or more, or MIN:MAX"),
        (["--local-nodes", "4:3"], "--local-nodes 4:3: give a number of nodes, 1 or more, or MIN:MAX"),
        (["--local-nodes", "3:"], "--local-nodes 3:: give a number"),
        (["--local-nodes", "2:3", "--shrink-after-seconds", "-1"], "--shrink-after-seconds must be 0 or more, not -1"),
        (["--local-nodes", "two"], "--local-nodes"),
        (["--nproc-per-node", "many"], "--nproc-per-node many"),
        (["--nproc-per-node", "²"], "--nproc-per-node ²: give a number"),
        (["--nproc-per-node", "99999999"], "--nproc-per-node 99999999: 1024 at most"),
        (["--local-ranks-filter", "²"], "--local-ranks-filter ²: give numbers"),
        (["--snapshot-every", "²"], "--snapshot-every ²: give a number"),
        (["--nproc-per-node", "-1"], "--nproc-per-node must be at least 1"),
        (["--spares", "-1"], "--spares must be at least 0"),
        (["--snapshot-every", "0"], "--snapshot-every must be at least 1"),
        (["--snapshot-every", "9" * 23], "--snapshot-every must be at most 1000000000000000, not 999"),
        (["--snapshot-every=--5"], "--snapshot-every --5: give a number of steps, or auto"),
        (["--snapshot-every", "often"], "--snapshot-every often: give a number of steps, or auto"),
        (["--max-restarts", "-1"], "--max-restarts must be at least 0"),
        (["--check-replicas", "-1"], "--check-replicas must be at least 0"),
        (["--parity", "-1"], "--parity must be at least 0, not -1"),
        (["--local-nodes", "4", "--parity", "-2"], "--parity must be at least 0, not -2"),
        (["--local-nodes", "2", "--parity", "2"], "so at most 1"),
        (["--local-nodes", "8", "--parity", "5"], "at most 4"),
        (["--codec", "raptor"], "--codec"),
        (["--protect-bandwidth", "fast"], "--protect-bandwidth fast: give bytes per second, like 500M"),
        (["--protect-bandwidth=-1M"], "--protect-bandwidth -1M"),
        (["--protect-bandwidth", "100000000G"], "--protect-bandwidth 100000000G: give bytes per second"),
        (["--protect-bandwidth", "nan"], "--protect-bandwidth nan"),
        (["--local-nodes", "2", "--spares", "1", "--failure-domain", "a,b"], "2 labels for 3 nodes, spares included"),
        (["--local-nodes", "2", "--failure-domain", "a,"], "a label has 1 to 64 characters"),
        (["--agent-grace-seconds", "0"], "--agent-grace-seconds must be more than 0"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--engine", "slurm"], "--engine"),
        (["--nnodes", "4"], "say with --controller HOST:PORT"),
        (["--nnodes", "2:4"], "--nnodes 2:4: say with --controller HOST:PORT"),
        (["--nnodes", "0"], "give a number of nodes"),
        (["--nnodes", "2", "--local-nodes", "2"], "a node is either a host or emulated"),
        (["--nnodes", "2", "--controller", "127.0.0.1:0"], "the other hosts must know the port"),
        (["--nnodes", "2", "--controller", "0.0.0.0:29400"], "give the address of the one host"),
        (["--nnodes", "2", "--controller", "no.such.host.invalid:29400"], "no.such.host.invalid is not known here"),
        (
            ["--nnodes", "2", "--node-rank", "2", "--controller", "127.0.0.1:1"],
            "give 0 to 1; spares are started without",
        ),
        (["--node-rank", "1"], "--node-rank 1: only with --nnodes"),
        (["--nnodes", "2", "--failure-domain", "a,b", "--controller", "127.0.0.1:1"], "2 labels for 1 node"),
        (["--heartbeat-timeout-seconds", "0"], "--heartbeat-timeout-seconds must be more than 0"),
        (["--join-timeout-seconds", "inf"], "--join-timeout-seconds must be more than 0"),
        (["--controller", "here"], "give HOST:PORT"),
        (["--controller-candidates", "a,b"], "emulated nodes have one host; it is for --nnodes"),
        (["--nnodes", "2", "--controller-candidates", "a"], "give two hosts or more"),
        (["--nnodes", "2", "--controller-candidates", "a,a:29400"], "each once"),
        (["--nnodes", "2", "--controller-candidates", "a:b,c"], "give HOST:PORT"),
        (
            ["--nnodes", "2", "--controller", "a:1", "--controller-candidates", "a,b"],
            "leave out --controller a:1; the job begins on the first candidate",
        ),
        (["--arena-dir", "/nowhere"], "/nowhere"),
        (["--local-nodes", "1001"], "--local-nodes 1001: 1000 at most"),
        (["--protect-bandwidth", "0"], "--protect-bandwidth 0: give bytes per second, like 500M or 1.5G; without it"),
        (["--ray-address", "h:1"], "--ray-address h:1: only with --engine ray"),
        (["--ray-per-worker", "CPU=2"], "--ray-per-worker CPU=2: only with --engine ray"),
        (["-m"], "no such module: "),
        (["--log-dir", "/proc/nowhere"], "--log-dir /proc/nowhere: it cannot be made: No such file"),
    ],
)
def test_a_bad_flag_of_run(flags: list[str], says: str, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "run", *flags, script)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (None, 0o600, "No such file"),
        (b"sixteen bytes long", 0o640, "others can read it; chmod 600"),
        (b"  too short     \n", 0o600, "give 16 bytes or more"),
    ],
)
def test_a_secret_that_is_none(
    text: bytes | None, mode: int, says: str, script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    if text is not None:
        secret.write_bytes(text)
        secret.chmod(mode)
    assert says in refused(capsys, "run", "--secret-file", str(secret), script)
    assert "not a file" in refused(capsys, "run", "--secret-file", str(tmp_path), script)


def test_a_missing_script_is_named_with_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such script: nowhere.py (working folder /" in refused(capsys, "run", "nowhere.py")


def test_a_state_folder_that_cannot_be_made(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FTRAIN_HOME", script)
    assert f"the state folder {script}: is no folder; set FTRAIN_HOME" in refused(capsys, "run", script)
    monkeypatch.setenv("FTRAIN_HOME", "/proc/nowhere")
    assert "the state folder /proc/nowhere: it cannot be made: No such file" in refused(capsys, "run", script)


def test_folders_that_may_not_be_entered(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = {str(tmp_path)}
    monkeypatch.setattr(os, "access", lambda path, _: str(path) not in closed)  # to root all folders are open
    assert f"--arena-dir {tmp_path}: no right to write" in refused(capsys, "run", "--arena-dir", str(tmp_path), script)
    closed.add(script)
    assert f"{script}: no right to read it" in refused(capsys, "run", script)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError

    for name in ("FTRAIN_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert "this user has no home folder: set FTRAIN_HOME" in refused(capsys, "status")


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    assert files.arena(Path("."), "x") == tmp_path / "ftrain-x"
    assert files.folder("", Path("logs"), "") == tmp_path / "logs"


def test_a_module_is_looked_for_where_python_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("raise AssertionError")
    monkeypatch.chdir(tmp_path)
    assert files.module("only_here.part") == "only_here.part"


def test_what_runs_on_rays_machines_gets_its_options() -> None:
    """Given the words of ``ftrain run --engine ray``, handed on to what Ray starts with another engine, all is well."""
    words = ["run", "--engine", "host", "--ray-address", "h:1", "--ray-per-worker", "CPU=1", "train.py"]
    chosen = build_parser().parse_args(words)
    needs.check(chosen)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("/x/char_gpt.py", "char-gpt"),
        ("-m package.train", "train"),
        ("-m train", "train"),
        ("--no-python ./go.sh", "go"),
    ],
)
def test_a_job_without_a_name_has_its_scripts(words: str, name: str) -> None:
    made = _new_name(build_parser().parse_args(["run", *words.split()]))
    assert re.fullmatch(rf"{name}-\d{{5}}-\d{{4}}", made)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"ftrain {version('ftrain')}\n"


def test_help_shows_each_flag_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    assert "--max-restarts N" in text
    assert "--max_restarts" not in text


def test_a_folder_is_no_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a folder" in refused(capsys, "run", str(tmp_path))


def test_a_port_that_is_in_use(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"{address}: the port is in use" in refused(capsys, "run", "--controller", address, script)


@pytest.mark.parametrize("command", ["status", "incidents", "snapshots"])
def test_a_job_that_is_not_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no job named 'nobody'" in refused(capsys, command, "--job", "nobody")
    assert f"no job named '{'x' * 300}'" in refused(capsys, command, "--job", "x" * 300)
    assert "start one with 'ftrain run'" in refused(capsys, command)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("incidents", "first"), "NUMBER"),
        (("incidents", "1", "--job", "nobody"), "no job named 'nobody'"),
        (("trace",), "--out"),
        (("trace", "--out", "trace.json", "--last-steps", "0"), "--last-steps 0: give 1 to 500"),
        (("trace", "--out", "/nowhere/trace.json"), "--out /nowhere/trace.json: give a file in a folder that is there"),
        (("trace", "--out", "/"), "--out /: give a file"),
        (("trace", "--out", "/dev/null"), "--out /dev/null: give a file"),
        (("trace", "--out", "trace.json", "--job", "nobody"), "no job named 'nobody'"),
        (("incidents", "-1"), "NUMBER must be at least 1, not -1"),
    ],
)
def test_what_a_report_cannot_be_made_of(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *arguments)


def test_a_fault_without_its_victim(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kill-worker needs --rank" in refused(capsys, "inject", "kill-worker")
    assert "kill-node needs --node" in refused(capsys, "inject", "kill-node")
    assert "kill-worker takes --rank, not --node" in refused(
        capsys, "inject", "kill-worker", "--rank", "0", "--node", "1"
    )
    assert "kill-node takes --node, not --rank" in refused(capsys, "inject", "kill-node", "--rank", "0", "--node", "1")


def test_streams_that_are_closed_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit, match="2"):
        main(["status"])


def test_no_command_and_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused(capsys)
    assert "frobnicate" in refused(capsys, "frobnicate")


def test_a_codec_that_is_not_installed_is_named_with_what_to_install(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftrain_snapshot import codec

    monkeypatch.setenv("FTRAIN_ISAL_LIBRARY", "/nowhere/libisal.so")
    codec.load.cache_clear()
    try:
        said = refused(capsys, "run", "--codec", "isal", script)
    finally:
        codec.load.cache_clear()
    assert "--codec isal: no ISA-L here" in said
    assert "pip install 'ftrain[isal]'" in said

"""Bad input ends with one clear line on stderr and exit code 2, and starts nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ftrain_launcher.cli import main


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
        (["--local-nodes", "0"], "--local-nodes must be at least 1, not 0"),
        (["--local-nodes", "two"], "--local-nodes"),
        (["--nproc-per-node", "many"], "--nproc-per-node many"),
        (["--nproc-per-node", "-1"], "--nproc-per-node must be at least 1"),
        (["--spares", "-1"], "--spares must be at least 0"),
        (["--snapshot-every", "0"], "--snapshot-every must be at least 1"),
        (["--max-restarts", "-1"], "--max-restarts must be at least 0"),
        (["--parity", "0"], "--parity must be at least 1, not 0"),
        (["--local-nodes", "4", "--parity", "-2"], "--parity must be at least 1, not -2"),
        (["--local-nodes", "2", "--parity", "2"], "so at most 1"),
        (["--local-nodes", "4", "--parity", "2"], "use --parity 1"),
        (["--agent-grace-seconds", "0"], "--agent-grace-seconds must be more than 0"),
        (["--name", "a/b"], "--name 'a/b'"),
        (["--engine", "slurm"], "--engine"),
        (["--nnodes", "4"], "--local-nodes"),
        (["--controller", "here"], "give HOST:PORT"),
        (["--arena-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_a_bad_flag_of_run(flags: list[str], says: str, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "run", *flags, script)


def test_a_missing_script_is_named_with_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such script: nowhere.py (working folder /" in refused(capsys, "run", "nowhere.py")


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
    assert "start one with 'ftrain run'" in refused(capsys, command)


def test_a_fault_without_its_victim(capsys: pytest.CaptureFixture[str]) -> None:
    assert "kill-worker needs --rank" in refused(capsys, "inject", "kill-worker")
    assert "kill-node needs --node" in refused(capsys, "inject", "kill-node")


def test_no_command_and_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused(capsys)
    assert "frobnicate" in refused(capsys, "frobnicate")

"""The words between agent and zygote, and what a forked child makes of its program's end."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ftrain_launcher.processes import child, spawning, zygote
from ftrain_launcher.processes.spawning import Children, Exited, Kill, Spawn
from ftrain_launcher.processes.zygote_start import ZygoteConfig
from ftrain_snapshot import frames

SPAWN = Spawn(id="r0", argv=("train.py", "--lr", "1"), env={"RANK": "0"}, cwd="/", stdout_path="o", stderr_path="e")


@pytest.mark.parametrize("request_", [SPAWN, Kill(("a", "b"), 9), spawning.List(), spawning.Shutdown(1.5)])
def test_a_request_survives_its_frame(request_: spawning.Request) -> None:
    [body] = frames.FrameBuffer().feed(spawning.encode(request_))
    assert spawning.decode_request(body) == request_


def test_an_event_survives_its_frame() -> None:
    event = Children((("a", 1),), (Exited("b", 2, None, 9),))
    [body] = frames.FrameBuffer().feed(spawning.encode(event))
    assert spawning.decode_event(body) == event


def test_an_event_is_no_request() -> None:
    [body] = frames.FrameBuffer().feed(spawning.encode(Exited("b", 2, 0, None)))
    with pytest.raises(msgspec.ValidationError):
        spawning.decode_request(body)


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3), (256 + 3, 3), (-1, 255), ("why", 1)])
def test_system_exit_means_what_it_means_to_python(
    code: object, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert child._exit_code(SystemExit(code)) == expected
    assert capsys.readouterr().err == ("why\n" if code == "why" else "")


def test_what_the_zygote_had_no_time_for_is_imported_without_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("later_one", "import later_two\n"), ("later_two", ""), ("other_one", "")):
        (tmp_path / f"{name}.py").write_text(f"import gc\n{text}on = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [child._QuickImports(frozenset({"later_one", "later_two"})), *sys.meta_path])
    modules = [importlib.import_module(name) for name in ("later_one", "later_two", "other_one")]
    assert [module.on for module in modules] == [False, False, True]
    assert gc.isenabled()
    (tmp_path / "later_bad.py").write_text("raise ValueError\n")
    sys.meta_path[0] = child._QuickImports(frozenset({"later_bad", "no_such_module"}))
    for name, error in (("later_bad", ValueError), ("no_such_module", ModuleNotFoundError)):
        with pytest.raises(error):
            importlib.import_module(name)
    assert gc.isenabled()


def test_output_files_are_opened_once_if_they_are_one(tmp_path: Path) -> None:
    both = msgspec.structs.replace(SPAWN, stdout_path=f"{tmp_path}/a/b/c", stderr_path=f"{tmp_path}/a/b/c")
    out, err = child.open_output(both)
    with open(out, "wb"):
        assert out == err
    with pytest.raises(FileExistsError):
        child.open_output(msgspec.structs.replace(both, stderr_path=f"{tmp_path}/a/b/c/d"))


def test_the_command_keeps_the_working_folder_out_of_the_imports(tmp_path: Path) -> None:
    config = ZygoteConfig(socket_path=tmp_path / "z.sock", log_path=tmp_path / "z.log", preload="")
    assert config.command()[:4] == [sys.executable, "-P", "-m", "ftrain_launcher.processes.zygote"]
    assert "--no-preload" in config.command()


@pytest.mark.parametrize(
    ("zygotes", "used_seconds", "wanted", "kill_at", "pauses"),
    [
        ({7}, 0.010, (), None, [0.19]),  # so that it takes a twentieth of a processor
        ({7}, 0.001, (), None, []),
        (set(), 0.010, (), None, []),  # its own workers lack these modules
        ({7}, 0.010, ("fork",), None, []),
        ({7}, 0.010, (), 100.0, []),
    ],
)
def test_within_an_import_who_has_forked_other_zygotes_gives_way_unless_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    zygotes: set[int],
    used_seconds: float,
    wanted: tuple[str, ...],
    kill_at: float | None,
    pauses: list[float],
) -> None:
    one: Any = object.__new__(zygote.Zygote)
    waits: list[float] = []
    one._zygotes, one._paused_at, one._kill_at, one._clients = zygotes, 3.0, kill_at, SimpleNamespace(requests=wanted)
    one._attend = lambda seconds, may_fork: waits.append(round(seconds, 6))
    monkeypatch.setattr(time, "process_time", lambda: 3.0 + used_seconds)
    one._attend_in_import()
    assert waits == [0.0, *pauses]

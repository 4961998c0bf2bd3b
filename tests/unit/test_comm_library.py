"""ftrain.comm.library: where the library is, that it is built once, and why there may be none."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from ftrain.comm import library
from ftrain.comm.library import Unavailable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ftrain"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A compiler that makes a file with nothing in it; the commands that it was given."""
    commands: list[list[str]] = []

    def compile(command: list[str], timeout_seconds: float) -> None:
        assert timeout_seconds > 0
        commands.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"library")

    monkeypatch.setattr(library, "_compile", compile)
    monkeypatch.setenv("CXX", "true")
    return commands


def test_it_is_built_once_into_a_private_folder(cache: Path, compilations: list[list[str]]) -> None:
    path = library.ensure()
    assert library.ensure() == library.cached() == path
    assert len(compilations) == 1
    assert path.parent == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    assert sorted(left.suffix for left in cache.iterdir()) == [".lock", ".so"]


def test_its_name_changes_with_torch_and_with_the_sources(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {library.library_path().name}
    monkeypatch.setattr(library.importlib.metadata, "version", lambda package: "9.9")  # type: ignore[attr-defined]
    names.add(library.library_path().name)
    (tmp_path / "recorder.cpp").write_text("other")
    monkeypatch.setattr(library, "_SOURCES", tmp_path)
    names.add(library.library_path().name)
    assert len(names) == 3


def test_without_having_been_built_it_is_unavailable(cache: Path) -> None:
    with pytest.raises(Unavailable, match="has not been built"):
        library.cached()


def test_without_a_compiler_the_reason_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler"):
        library.ensure()


def test_a_failed_build_is_not_tried_again_for_a_while(
    cache: Path, compilations: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fail(command: list[str], timeout_seconds: float) -> str:
        attempts.append(1)
        return "note: x\na.hpp:1: error: no such member\n"

    monkeypatch.setattr(library, "_compile", fail)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"the compiler failed: a\.hpp:1: error: no such member"):
            library.ensure()
    assert len(attempts) == 1
    (failure,) = cache.glob("*.failed")
    os.utime(failure, (time.time() - library.FAILURE_KEPT_SECONDS - 1,) * 2)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(library, "_compile", lambda command, seconds: Path(command[-4]).write_bytes(b"x") and None)
    assert library.ensure().exists()
    assert not failure.exists()


def test_whoever_comes_second_waits_and_not_for_ever(
    cache: Path, compilations: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "BUILD_SECONDS_MAX", 0.0)
    cache.mkdir(parents=True, mode=0o700)
    with library.library_path().with_suffix(".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process builds it"):
            library.ensure()
    assert compilations == []


def test_it_needs_building_only_where_it_is_wanted_and_not_there(
    cache: Path, compilations: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library.needs_building()
    monkeypatch.setenv("FTRAIN_RECORDER", "0")
    assert not library.needs_building()
    monkeypatch.delenv("FTRAIN_RECORDER")
    library.ensure()
    assert not library.needs_building()
    assert library.start_building() is None


def test_a_folder_that_others_may_write_to_is_refused(cache: Path, compilations: list[list[str]]) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(Unavailable, match="not this user's alone"):
        library.ensure()

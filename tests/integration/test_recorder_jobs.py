"""The recorder under `ftrain run`: on in every worker, unseen by the script, and off if somebody says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import PROGRAMS, Job

from ftrain.comm import library
from ftrain.comm.ring import NATIVE, PYTHON

pytestmark = pytest.mark.timeout(400)
OF_THE_SCRIPT = str(PROGRAMS / "recorded.py")


def run(folder: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What both ranks found, and what the terminal showed."""
    job = Job(folder / "job", "--nproc-per-node", "2", *flags, program="recorded.py", anew=True)
    try:
        assert job.wait(200) == 0, job.tail()
        found = [json.loads((job.out / f"found.{rank}").read_text()) for rank in (0, 1)]
        return found, job.log.read_text()
    finally:
        job.close()


@pytest.mark.parametrize("flags", [(), ("--no-zygote",)], ids=["forked", "executed"])
def test_a_script_is_recorded_and_sees_nothing_of_it(tmp_path: Path, flags: tuple[str, ...]) -> None:
    try:
        library.ensure()
    except library.Unavailable as reason:
        pytest.skip(str(reason))
    found, terminal = run(tmp_path, *flags)
    for rank, seen in enumerate(found):
        ring = seen.pop("ring")
        place = {"kind": NATIVE, "rank": rank, "local_rank": rank, "world_size": 2, "generation": 1}
        assert ring["identity"] == {**place, "pid": seen["pid"]}
        assert ring["steps"] == [0, 1, 2]
        assert ring["members"] == [[0, 1]]
        assert ring["operations"] >= 5  # DDP's check of shapes, its broadcast, three reductions
        assert seen["argv"] == [OF_THE_SCRIPT, "--out", str(tmp_path / "job" / "out")]
        assert seen["main"] == OF_THE_SCRIPT
        assert str(PROGRAMS) in seen["path"]
        assert not [entry for entry in seen["path"] if "startup" in entry]
        assert seen["pythonpath"] is None
    assert "recorder" not in terminal


def test_without_a_compiler_it_runs_in_python_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    found, terminal = run(tmp_path)
    assert [seen["ring"]["identity"]["kind"] for seen in found] == [PYTHON, PYTHON]
    assert [seen["ring"]["steps"] for seen in found] == [[0, 1, 2]] * 2
    assert terminal.count("the recorder runs in Python") == 1


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAIN_RECORDER", "0")
    found, _ = run(tmp_path)
    assert [seen["ring"] for seen in found] == [{}, {}]

"""``ftrain doctor`` says what this machine has, to people and to programs."""

from __future__ import annotations

import json
import os
import subprocess

import msgspec
import pytest
from unit.test_health_judge import SOUND

from ftrain_launcher.cli import main
from ftrain_launcher.commands.doctor import STRIPES
from ftrain_launcher.health import local
from ftrain_snapshot.codec import ENGINES, choose, isal, load, speed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, and figures of a node that nobody has measured."""
    monkeypatch.setattr(speed, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(local, "_measure", lambda task: SOUND)


@pytest.fixture
def without_isal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(isal.LIBRARY_VARIABLE, "/nowhere/libisal.so.2")
    load.cache_clear()
    yield
    load.cache_clear()


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_programs_get_one_json_document(capsys):
    report = json.loads(said(capsys, "--json"))
    assert report["cores"] == len(os.sched_getaffinity(0))
    assert 0 <= report["arena"]["free_bytes"] <= report["arena"]["bytes"]
    assert report["codec"]["auto"] == choose("auto").name
    engines = report["codec"]["engines"]
    assert [e["name"] for e in engines] == list(ENGINES)
    for engine in engines:
        assert [(s["data"], s["parity"]) for s in engine["speeds"]] == (list(STRIPES) if engine["available"] else [])
        assert all(s["encode_gb_per_second"] > 0 and s["decode_gb_per_second"] > 0 for s in engine["speeds"])


def test_an_engine_that_is_not_here_is_shown_with_the_reason(capsys, without_isal):
    found = json.loads(said(capsys, "--json"))["codec"]
    assert found["auto"] == "numpy"
    assert found["engines"][0]["available"] is False
    assert "pip install 'ftrain[isal]'" in found["engines"][0]["reason"]


def test_people_get_lines_and_a_table(capsys, without_isal):
    lines = said(capsys).splitlines()
    assert lines[0].startswith("cores: ")
    assert lines[1].startswith("arena: /dev/shm, ")
    assert lines[2].startswith("codec: numpy ")
    assert lines[3].split() == [
        "engine",
        *(word for k, m in STRIPES for word in ("encode", f"{k}+{m}", "decode", f"{k}+{m}")),
    ]
    rows = {line.split()[0]: line.split()[1:] for line in lines[4:7]}
    assert rows["isal"] == ["-"] * 4
    assert all(float(cell) > 0 for cell in rows["numpy"])
    assert any(line.startswith("isal: no ISA-L here (/nowhere/libisal.so.2") for line in lines[7:])


def test_the_node_itself_is_judged_and_a_bad_one_is_an_exit_code(capsys, monkeypatch):
    assert json.loads(said(capsys, "--json"))["node"] == {
        "state": "ok",
        "reasons": [],
        "figures": json.loads(msgspec.json.encode(SOUND)) | {"type": "node_figures"},
    }
    assert said(capsys).splitlines()[-1] == "health: ok"
    monkeypatch.setattr(local, "_measure", lambda task: msgspec.structs.replace(SOUND, exact=False))
    assert "health: bad; its processor computes wrongly" in said(capsys, code=1)
    monkeypatch.setattr(local, "_measure", lambda task: "No module named 'torch'")
    assert json.loads(said(capsys, "--json", code=1))["node"]["figures"] is None


def test_a_job_is_only_asked_for_its_nodes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--job", "some"])
    assert ended.value.code == 2
    assert "--job some: only with --nodes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (-9, b"", "it could not be checked: its process was ended by SIGKILL"),
        (1, b"", "it could not be checked: its process ended with exit code 1"),
        (1, b"Traceback ...\nImportError: no torch\n", "it could not be checked: ImportError: no torch"),
        (0, b"", "it could not be checked: its process ended with exit code 0"),
    ],
)
def test_a_check_that_ends_without_a_word_is_a_reason(code, said, told, monkeypatch):
    monkeypatch.undo()
    ended = subprocess.CompletedProcess([], code, b"", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    assert local.check("/", "/dev/shm")["reasons"] == [told]

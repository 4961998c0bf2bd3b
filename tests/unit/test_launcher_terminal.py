"""What is said to people, and that nobody need listen."""

from __future__ import annotations

import os
import sys

import pytest

from ftrain_launcher.terminal import announce


def test_each_line_has_the_name_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    announce("one\ntwo")
    assert capsys.readouterr().err == "ftrain: one\nftrain: two\n"


def test_a_pipe_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ftrain run ... 2>&1 | head``: neither launcher nor controller may break off for that."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        announce("one")
        announce("two")
        stderr.flush()


def test_a_disk_that_is_full_ends_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        announce("one")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr.fileno())

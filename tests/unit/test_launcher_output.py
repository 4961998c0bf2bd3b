"""Lines of workers: whole, prefixed, bounded, none lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_launcher.processes.output import LineCutter, OutputTail, Terminal, last_lines, log_path, size_of


def cut(*chunks: bytes, limit: int = 1 << 14) -> bytes:
    cutter = LineCutter("[r] ", limit)
    return b"".join([line for chunk in chunks for line in cutter.feed(chunk)] + cutter.flush())


def test_lines_are_whole_and_prefixed() -> None:
    cutter = LineCutter("[rank 1] ")
    assert cutter.feed(b"one\ntw") == [b"[rank 1] one\n"]
    assert cutter.feed(b"o\n\n") == [b"[rank 1] two\n", b"[rank 1] \n"]
    assert cutter.flush() == []


def test_a_begun_line_comes_out_at_the_end() -> None:
    assert cut(b"a\nlast words") == b"[r] a\n[r] last words\n"


def test_a_progress_bar_counts_as_its_last_state() -> None:
    assert cut(b" 10%\r 20", b"%\r100%\r", b"\nb\r\n") == b"[r] 100%\n[r] b\n"


def test_an_endless_line_is_broken() -> None:
    assert cut(b"a" * 9, b"a" * 2, limit=4) == b"[r] aaaa\n[r] aaaa\n[r] aaa\n"
    cutter = LineCutter("", 1000)
    for _ in range(100):
        cutter.feed(b"x" * 999)
        assert len(cutter._partial) <= 1000


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"x", b"\n").replace(b"y", b"\r")), max_size=8))
def test_it_does_not_matter_how_the_bytes_arrive(chunks: list[bytes]) -> None:
    assert cut(*chunks) == cut(b"".join(chunks))


def test_the_last_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_lines(path, 3) == []
    path.write_bytes(b"\n".join(b"%d" % i for i in range(1000)) + b"\n\xff end")
    assert last_lines(path, 2) == ["999", "\N{REPLACEMENT CHARACTER} end"]
    assert last_lines(path, 100, bytes_max=8) == ["99", "\N{REPLACEMENT CHARACTER} end"]
    assert last_lines(path, 0) == []
    assert last_lines(path, 3, since=size_of(path) - 3) == ["end"]


def test_where_output_goes() -> None:
    assert log_path(Path("logs"), 3, 12) == Path("logs/generation-3/rank-12.log")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def read_all(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_the_tail_copies_all_files_to_their_end(tmp_path: Path, pipe: tuple[int, int]) -> None:
    tail = OutputTail()
    for rank in range(2):
        tail.follow(tmp_path / str(rank), f"[rank {rank}] ", Terminal(pipe[1]))
        (tmp_path / str(rank)).write_text("hello\nno newline")
    tail.finish(tmp_path / "0")
    tail.follow(tmp_path / "absent", "[rank 2] ", Terminal(pipe[1]))
    assert tail.close()
    assert sorted(read_all(pipe[0]).splitlines()) == [
        b"[rank 0] hello", b"[rank 0] no newline", b"[rank 1] hello", b"[rank 1] no newline",
    ]  # fmt: skip


def test_a_follower_from_the_end_skips_what_was_there(tmp_path: Path, pipe: tuple[int, int]) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = OutputTail()
    tail.follow(path, "", Terminal(pipe[1]), since=size_of(path))
    with path.open("a") as file:
        file.write("new\n")
    assert tail.close()
    assert read_all(pipe[0]) == b"new\n"


def test_a_blocked_terminal_stops_nobody(tmp_path: Path, pipe: tuple[int, int]) -> None:
    (tmp_path / "log").write_text("y\n" * (1 << 16))  # twice what a pipe holds
    tail = OutputTail()
    tail.follow(tmp_path / "log", "", Terminal(pipe[1]))
    assert not tail.close(timeout_seconds=0.05)
    os.set_blocking(pipe[0], True)
    text = b""
    while len(text) < 2 << 16:
        text += os.read(pipe[0], 1 << 16)
    assert text == (tmp_path / "log").read_bytes()
    assert tail.close()


def test_a_closed_terminal_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    (tmp_path / "log").write_text("a\nb\n")
    tail = OutputTail()
    tail.follow(tmp_path / "log", "", Terminal(writer))
    assert tail.close()
    os.close(writer)

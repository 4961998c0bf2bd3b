"""What a worker said at its end, in one line."""

from __future__ import annotations

import traceback

import pytest

from ftrain_launcher.job.last_words import last_words, misses_a_peer


def _lines(error: BaseException, before: str = "") -> list[str]:
    try:
        raise error
    except BaseException as raised:
        return [before + line for line in "".join(traceback.format_exception(raised)).splitlines()]


def test_of_a_traceback_the_error_is_told_however_long_its_text() -> None:
    assert last_words(_lines(KeyError("x"))) == "KeyError: 'x'"
    assert last_words(_lines(ValueError("a shape\n  want 3\n  have 4\n"))) == "ValueError: a shape ... have 4"
    assert last_words(_lines(ValueError("a shape\nhave 4"), "[rank3]: ")) == "ValueError: a shape ... have 4"


def test_an_error_whose_text_begins_and_ends_with_empty_lines_is_told_with_what_it_says() -> None:
    """As torch's pipeline stages raise it."""
    text = "\n    [Stage 1] failed to run forward:\n    args: ()\n    kwargs: {}\n    "
    said = "RuntimeError: [Stage 1] failed to run forward: ... kwargs: {}"
    assert last_words(_lines(RuntimeError(text), "[rank4]: ")) == said
    assert last_words([line.rstrip() for line in _lines(RuntimeError(text), "[rank4]: ")]) == said
    assert last_words(_lines(RuntimeError("\n  one"))) == "RuntimeError: one"


def test_of_a_group_its_own_line_and_the_last_error_are_told() -> None:
    group = ExceptionGroup("two went wrong", [ValueError("a"), KeyError("b")])
    assert last_words(_lines(group)) == "ExceptionGroup: two went wrong (2 sub-exceptions) ... KeyError: 'b'"


def test_what_follows_a_traceback_is_told_too() -> None:
    assert last_words([*_lines(KeyError("x")), "giving up"]) == "KeyError: 'x' ... giving up"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], ""),
        (["", "  "], ""),
        (["step 3", "no licence", ""], "no licence"),
        (["\x1b[31mred\x1b[0m\x07 words"], "red words"),
        (["what(): 2 vs 3", "Fatal Python error: Aborted", "", "Extension modules: a, b"], "what(): 2 vs 3"),
        (["Fatal Python error: Aborted", "", "Extension modules: a, b"], "Fatal Python error: Aborted"),
        (['  File "a.py", line 1 in f', "", "Extension modules: a, b"], 'File "a.py", line 1 in f'),
        (["x" * 1000], "x" * 200),
        (["Traceback (most recent call last):", '  File "a.py", line 1, in f'], 'File "a.py", line 1, in f'),
    ],
)
def test_otherwise_the_last_line_that_says_something(lines: list[str], said: str) -> None:
    assert last_words(lines) == said


@pytest.mark.parametrize(
    ("error", "misses"),
    [
        ("RuntimeError: [/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer", True),
        ("torch.distributed.DistNetworkError: the server has closed", True),
        ("torch.distributed.DistBackendError: NCCL error", True),
        ("RuntimeError: no such sample", False),
        ("mine.PeerError: Connection reset by peer", False),
        ("ConnectionResetError: [Errno 104] Connection reset by peer", False),
    ],
)
def test_the_errors_that_a_lost_peer_leaves_are_told_from_a_programs_own(error: str, misses: bool) -> None:
    lines = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', error]
    assert misses_a_peer([f"[rank1]: {line}" for line in lines]) == misses
    assert not misses_a_peer([error]), "no traceback: the script may have said it of anything"

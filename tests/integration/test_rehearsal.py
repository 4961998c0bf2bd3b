"""A standby's rehearsal leaves nothing behind, and is no trouble of the script's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from ftrain import rehearsal


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_it_leaves_no_group_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with default_dtype(torch.float64), torch.no_grad():
        rehearsal.rehearse()
    assert not dist.is_initialized()
    assert capsys.readouterr().out == ""


def test_what_fails_is_said_and_goes_no_further(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("this torch was changed")

    monkeypatch.setattr(rehearsal, "_train", fail)
    rehearsal.rehearse()
    assert not dist.is_initialized()
    assert "this torch was changed" in capsys.readouterr().out


def test_somebody_elses_hooks_see_none_of_it() -> None:
    seen: list[nn.Module] = []
    hook = register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        rehearsal.rehearse()
    finally:
        hook.remove()
    assert seen == []

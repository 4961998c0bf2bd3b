"""When the owner of a job on Ray asks for one more member."""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

import pytest

from ftrain_launcher.engines.ray import supervisor as supervisor_module
from ftrain_launcher.engines.ray.placing import Places
from ftrain_launcher.engines.ray.supervisor import Supervisor


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a job that begins with two members; its thread is left out."""
    monkeypatch.setattr(supervisor_module, "bundles", lambda _: 2)
    made: Any = Supervisor.__new__(Supervisor)
    made._changed, made._places, made._come, made._order = threading.Condition(), Places(), set(), None
    return made


def asked(supervisor: Any) -> list[tuple[str, ...]]:
    """The machines that are closed to what is asked for now."""
    fleet = mock.Mock(extras=())
    fleet.ended.return_value = []
    supervisor._grow(fleet)
    return [call.args[1] for call in fleet.grow.call_args_list]


def test_more_members_are_asked_for_from_the_beginning_to_the_end_of_the_training(supervisor: Any) -> None:
    places = supervisor._places
    places.claim("bundle 0", "a")
    supervisor._come.add("bundle 0")
    assert asked(supervisor) == []  # there is no room for all that it begins with
    places.claim("bundle 1", "b")
    supervisor._come.add("bundle 1")
    assert asked(supervisor) == [("a", "b")]
    places.leave("bundle 0")
    assert asked(supervisor) == [("b",)]
    places.leave("bundle 1")
    assert asked(supervisor) == []  # and to be elsewhere than nowhere is no place that Ray knows

"""Worlds, as members are told of them: which snapshot is whose."""

from __future__ import annotations

import pytest
from unit.coordinator_job import DATA, WHOLE, Job, config, snapshot

from ftrain_launcher.job.events import Progress
from ftrain_launcher.job.worlds import Worlds, is_same, place
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.errors import PlacementImpossible


def test_a_world_is_the_same_if_nobody_moved() -> None:
    assert is_same(["a", "b"], ["a", "b"])
    assert is_same(["a", "b"], ["c", "b"])
    assert is_same(["a", "b"], [None, "b"])
    assert not is_same(["a", "b"], ["b", "a"])
    assert not is_same(["a", "b", "c"], ["a", "c"])
    assert not is_same([], ["a"])


def test_a_snapshot_belongs_to_the_world_of_its_generation() -> None:
    worlds = Worlds()
    worlds.begin(place(["", ""], 1, first=1, elastic=True))
    worlds.begin(place([""], 1, first=4, elastic=True))
    found = [worlds.of(snapshot(9, generation)) for generation in (1, 3, 4, 7)]
    assert [world.nodes for world in found if world is not None] == [2, 2, 1, 1]


def test_labels_of_failure_domains_may_leave_less_parity() -> None:
    assert place(["r1", "r1", "r1"], 2, first=1, elastic=True).parity == 0
    with pytest.raises(PlacementImpossible):
        place(["r1", "r1", "r1"], 2, first=1, elastic=False)


def test_a_fixed_job_is_told_nothing_of_other_worlds() -> None:
    job = Job(config(nodes=3, spares=1))
    job.run()
    job.tell(Progress(1, 5, 5))
    job.lose("node-1")
    job.stop_all({snapshot(5): DATA, snapshot(4): WHOLE})
    form = job.forms()["node-3"]
    assert isinstance(form, Form)
    assert (form.restore, form.origin, form.position) == (snapshot(4), None, 1)

"""What operators see: shapes that scripts depend on, and what is shown while things change."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from unit.coordinator_job import BOTH, Job, snapshot

from ftrain_launcher.control import views
from ftrain_launcher.control.views import Observation
from ftrain_launcher.engine_messages import StopJob
from ftrain_launcher.from_agent import RankState, Trouble
from ftrain_launcher.job.events import Progress
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.status import DaemonStatus, Levels, Volume


def seen(rank: int, *, generation: int = 1, gate: bool = False, sealed: int | None = None) -> Observation:
    holding = Holding(snapshot(4), rank, True, True, 100, 50)
    return Observation(
        agent_pid=10 + rank,
        daemon_pid=20 + rank,
        generation=generation,
        ranks=(RankState(rank, 0, 30 + rank, "running", 6),),
        daemon=DaemonStatus(generation, gate, Levels(sealed, sealed), 7, 2, True),
        inventory=Inventory((holding,)),
    )


def all_seen(sealed: int | None = 5) -> dict[str, Observation]:
    return {f"node-{n}": seen(n, gate=n == 0, sealed=sealed) for n in range(3)}


def test_status_has_the_documented_shape(job: Job) -> None:
    shown = views.status(job.coordinator, all_seen(), 99)
    assert {key: shown[key] for key in ("job", "state", "generation", "controller", "incidents")} == {
        "job": "job",
        "state": "running",
        "generation": 1,
        "controller": {"pid": 99},
        "incidents": 0,
    }
    rank = {"rank": 1, "local_rank": 0, "pid": 31, "state": "running", "step": 6}
    node = shown["nodes"][1]
    assert {key: node[key] for key in ("name", "state", "agent_pid", "daemon_pid", "ranks")} == {
        "name": "node-1",
        "state": "active",
        "agent_pid": 11,
        "daemon_pid": 21,
        "ranks": [rank],
    }
    levels = {"sealed": 5, "protected": 5, "durable": None, "taken": 7, "skipped": 2}
    assert {key: shown["snapshots"][key] for key in levels} == levels


def test_a_lost_node_shows_no_pid(job: Job) -> None:
    job.lose("node-1")
    node = views.status(job.coordinator, all_seen(), 99)["nodes"][1]
    assert (node["state"], node["agent_pid"], node["daemon_pid"], node["ranks"]) == ("lost", None, None, [])


def test_an_agent_that_is_away_shows_no_pid_but_its_workers_do(job: Job) -> None:
    job.leave("node-1")
    node = views.status(job.coordinator, all_seen(), 99)["nodes"][1]
    assert (node["state"], node["agent_pid"], node["daemon_pid"]) == ("away", None, 21)
    assert node["ranks"][0]["pid"] == 31


def test_states_of_a_job() -> None:
    job = Job()
    states = [state(job)]
    job.gather()
    states.append(state(job))
    job.stop_all()
    states.append(state(job))
    job.step_all()
    states.append(state(job))
    job.tell(StopJob("enough", 1))
    states.append(state(job))
    for node in list(job.coordinator.nodes):
        job.leave(node)
    states.append(state(job))
    assert states == ["gathering", "stopping", "starting", "running", "ending", "failed"]


def state(job: Job) -> str:
    return str(views.status(job.coordinator, {}, 1)["state"])


def test_levels_stand_while_the_next_generation_is_formed(job: Job) -> None:
    job.tell(Progress(1, 3, 3))
    assert views.levels(job.coordinator, all_seen(sealed=5)).sealed == 5
    job.exit(2, signal=9)
    assert views.levels(job.coordinator, all_seen(sealed=5)).sealed == 5
    job.stop_all(BOTH)
    assert views.levels(job.coordinator, all_seen(sealed=9)).sealed == 5  # That was said of the generation before.


def test_without_a_gate_the_journal_knows_the_levels(job: Job) -> None:
    job.tell(Progress(1, 3, 2))
    assert views.levels(job.coordinator, all_seen(sealed=None)) == Levels(3, 2)


def test_an_incident_has_the_documented_shape(job: Job) -> None:
    job.exit(2, signal=9, step=5)
    began = job.now
    shown = views.incidents(job.coordinator)["incidents"][0]
    assert (shown["kind"], shown["state"], shown["seconds"]) == ("worker_exit", "open", None)
    job.stop_all(BOTH)
    job.step_all()
    (shown,) = views.incidents(job.coordinator)["incidents"]
    timeline = shown["timeline"]
    assert list(timeline) == ["detected", "named", "decided", "formed", "restored", "first_step"]
    assert timeline.pop("named") is None  # the detector had nothing to say
    assert sorted(timeline.values()) == list(timeline.values())
    assert timeline["detected"] == began
    assert shown["seconds"] == timeline["first_step"] - began
    assert shown["suspects"] == [{"rank": 2, "node": "node-2", "pid": 1002}]
    assert (shown["state"], shown["steps_lost"], shown["resumed_from"], shown["generation"]) == ("closed", 0, 5, 1)


def test_a_dead_daemon_is_listed(job: Job) -> None:
    job.tell(Trouble("node-1", 1, "daemon_exit", "signal 9"))
    (shown,) = views.incidents(job.coordinator)["incidents"]
    assert (shown["kind"], shown["state"], shown["seconds"]) == ("daemon_exit", "closed", None)


def test_snapshots_say_who_holds_what(job: Job) -> None:
    shown = views.snapshots(job.coordinator, all_seen(), 100.0)
    assert shown["groups"] == [[0, 1, 2]]
    (version,) = shown["snapshots"]
    assert (version["version"], version["level"], len(version["nodes"])) == (4, "protected", 3)
    assert version["nodes"][1] == {
        "node": "node-1",
        "position": 1,
        "data": True,
        "parity": True,
        "data_bytes": 100,
        "parity_bytes": 50,
        "damaged": False,
        "age_seconds": None,
    }


def test_a_snapshot_ages_from_when_it_was_first_told_of() -> None:
    observation = seen(0)
    inventory = Inventory((Holding(snapshot(4), 0, True, True),))
    observation.take_inventory(inventory, 10.0)
    observation.take_inventory(Inventory((*inventory.holdings, Holding(snapshot(5), 0, True, False))), 12.0)
    assert observation.since == {snapshot(4): 10.0, snapshot(5): 12.0}
    observation.take_inventory(Inventory(), 13.0)
    assert observation.since == {}


def test_a_daemons_share_of_a_core_is_that_of_the_last_seconds() -> None:
    def status(cpu_seconds: float) -> DaemonStatus:
        return DaemonStatus(1, False, Levels(), 0, 0, True, cpu_seconds=cpu_seconds)

    observation = seen(0)
    for moment, used in ((0.0, 3.0), (1.0, 3.9), (10.0, 5.0)):
        observation.take_daemon(1, status(used), moment)
    assert observation.cpu_share == pytest.approx(0.2)
    observation.take_daemon(2, status(0.0), 11.0)
    assert observation.cpu_share is None


def test_status_shows_exposure_and_what_snapshots_cost_all_nodes_together(job: Job) -> None:
    observations = all_seen()
    for name, observation in observations.items():
        assert observation.daemon is not None
        volume = Volume(captured_bytes=100, copied_bytes=10, sent_bytes=5)
        observation.daemon = replace(
            observation.daemon, exposed_seconds=0.5 * (name == "node-0"), last=volume, cpu_seconds=1.5
        )
    shown = views.status(job.coordinator, observations, 99)
    assert (shown["snapshots"]["exposed_seconds"], shown["snapshots"]["exposed_last_seconds"]) == (0.5, 0.0)
    assert shown["volume"]["last"]["captured_bytes"] == 300
    assert shown["volume"]["last"]["copied_bytes"] == 30
    assert shown["volume"]["total"]["sent_bytes"] == 0
    assert shown["nodes"][1]["daemon_cpu_seconds"] == 1.5

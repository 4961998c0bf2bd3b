"""The story of one incident: what it says, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from unit.coordinator_job import BOTH, Job, raised

from ftrain_launcher.control import views
from ftrain_launcher.control.story import phases, tell
from ftrain_launcher.errors import UsageError
from ftrain_launcher.from_agent import RankRestored, Trouble

STACK = 'Thread 4711 (idle): "MainThread"\n    load (data.py:17)\n    <module> (train.py:80)\n'


def hang(**more: Any) -> dict[str, Any]:
    """As `views.incident` tells it: rank 3 was stopped."""
    waits = [
        {"waiter": rank, "waited_for": [3], "communicator": "dp", "op": "all_reduce", "seq": 1042, "seconds": 0.81}
        for rank in (0, 1, 2)
    ]
    verdict = {
        "kind": "hang",
        "generation": 2,
        "ranks": [3],
        "nodes": [],
        "links": [],
        "confidence": 0.95,
        "sentence": "rank 3 on node-1 is stopped (T): 3 ranks wait for it",
        "waits": waits,
        "seconds": 0.81,
        "step": 57,
        "details": {"process of rank 3": "stopped, pid 4711", "stack of rank 3": STACK},
    }
    return {
        "number": 1,
        "kind": "hang",
        "suspects": [{"rank": 3, "node": "node-1", "pid": 4711}],
        "generation": 2,
        "timeline": {
            "detected": 100.81,
            "named": 100.81,
            "decided": 100.83,
            "formed": 100.9,
            "restored": 101.2,
            "first_step": 101.25,
        },
        "seconds": 0.44,
        "steps_lost": 0,
        "resumed_from": 56,
        "demoted": None,
        "reason": "rank 3 on node-1 hangs",
        "state": "closed",
        "phases": {},
        "signs": [
            {
                "kind": "hang",
                "node": "node-1",
                "rank": 3,
                "pid": 4711,
                "time": 100.81,
                "text": "rank 3 on node-1 hangs",
                "traceback": "",
                "last_lines": [],
            }
        ],
        "verdicts": [verdict],
        "decision": "restart: the first hang of this rank",
        "harmless": False,
        "over": None,
        "job_state": "running",
        "certificate": None,
        **more,
    }


def test_a_hang_is_told_from_what_broke_to_what_followed() -> None:
    lines = tell(hang())
    assert lines[0] == "incident 1: hang: rank 3 on node-1 is stopped (T): 3 ranks wait for it"
    assert lines[1] == "it ended generation 2; training again after 0.44 s"
    titles = [line for line in lines[2:] if line and not line.startswith(" ")]
    assert titles == [
        "timeline",
        "what the detector found",
        "who waited for whom",
        "evidence",
        "stack of rank 3",
        "what followed",
    ]
    assert "  hang after step 57, found when it had lasted 0.81 s; confidence 0.95" in lines
    assert len([line for line in lines if "3 ranks wait for it" in line]) == 1
    assert "  ranks 0-2 --all_reduce #1042 'dp' 0.8 s--> rank 3" in lines
    assert "  process of rank 3: stopped, pid 4711" in lines
    assert "      load (data.py:17)" in lines
    assert "  decision: restart: the first hang of this rank" in lines
    assert "  resumed from the snapshot after step 56; sealed steps lost: 0" in lines


def test_the_timeline_counts_from_the_first_moment_and_measures_each_phase() -> None:
    lines = tell(hang())
    assert [(line.split("  ")[1], line.split("  +")[1]) for line in lines[4:11]] == [
        ("began", "0.000 s"),
        ("fault seen", "0.810 s  (0.810 s)"),
        ("named", "0.810 s  (0.000 s)"),
        ("decided", "0.830 s  (0.020 s)"),
        ("formed", "0.900 s  (0.070 s)"),
        ("restored", "1.200 s  (0.300 s)"),
        ("first step", "1.250 s  (0.050 s)"),
    ]


@pytest.mark.parametrize(
    ("job_state", "said"),
    [("stopping", "open"), ("failed", "the job has failed"), ("finished", "the job has finished")],
)
def test_an_incident_that_a_job_ended_with_is_not_called_open(job_state: str, said: str) -> None:
    lines = tell({**hang(), "seconds": None, "state": "open", "job_state": job_state})
    assert lines[1] == f"it ended generation 2; {said}"


def test_moments_that_were_not_reached_are_left_out() -> None:
    assert phases({"detected": 1.0, "named": None, "decided": 1.5, "formed": None}) == {"decided": 0.5}


def story(job: Job, number: int = 1) -> list[str]:
    return tell(views.incident(job.coordinator, number)["incident"])


def test_a_killed_worker_has_no_verdict_but_its_log(job: Job) -> None:
    job.exit(2, signal=9, step=5, last_lines=("step 4", "step 5"))
    lines = story(job)
    assert lines[0] == "incident 1: worker_exit: rank 2 on node-2 was killed by SIGKILL after step 5"
    assert lines[1].endswith("; open")
    assert lines[-3:] == ["the end of the log of rank 2", "  step 4", "  step 5"]
    job.stop_all(BOTH)
    job.step_all()
    lines = story(job)
    assert "training again after" in lines[1]
    assert not any("waited" in line or "detector" in line for line in lines)
    assert "  resumed from the snapshot after step 5; sealed steps lost: 0" in lines


def test_who_kept_live_tensors_is_told(job: Job) -> None:
    job.exit(2, signal=9, step=5)
    job.stop_all(BOTH)
    for rank in job.coordinator.ranks.values():
        sizes = (900, 0) if rank.rank == 2 else (0, 900)
        job.tell(RankRestored(rank.node, job.coordinator.formed, rank.rank, 5, job.now, *sizes))
    ranks = len(job.coordinator.ranks)
    assert story(job)[-1] == f"  {ranks - 1} of {ranks} ranks kept their live tensors; 900 bytes of state were read"


def test_a_fault_that_stopped_nobody_is_told_so(job: Job) -> None:
    job.tell(Trouble("node-1", 1, "daemon_exit", "restarted in 0.10 s"))
    lines = story(job)
    assert lines[0] == "incident 1: daemon_exit: the daemon of node-1 died and was started again (restarted in 0.10 s)"
    assert lines[1] == "it stopped nobody in generation 1"
    assert not any("resumed" in line or "anew" in line for line in lines)


def test_an_exception_is_told_with_its_traceback_and_all_signs_by_their_time(job: Job) -> None:
    job.exit(1, failure=raised("ValueError: boom"))
    job.exit(0, failure=raised("RuntimeError: gloo", communication=True))
    lines = story(job)
    assert "ValueError" in lines[0]
    assert "traceback of rank 1" in lines
    seen = lines.index("what was seen")
    assert [line.split()[2:4] for line in lines[seen + 1 : seen + 3]] == [["rank", "1"], ["rank", "0"]]


def test_what_had_been_seen_before_the_fault_has_a_minus(job: Job) -> None:
    job.exit(1, code=0)
    job.now += 1.99
    job.exit(0, failure=raised("RuntimeError: gloo", communication=True))
    assert [line.split()[0] for line in story(job) if " code 0" in line and " s  rank 1" in line] == ["-2.000"]


def test_an_unknown_incident_is_refused_with_those_there_are(job: Job) -> None:
    with pytest.raises(UsageError, match="no incident 1: there was none so far"):
        views.incident(job.coordinator, 1)
    job.exit(2, signal=9)
    with pytest.raises(UsageError, match="no incident 7: 1 to 1 are kept"):
        views.incident(job.coordinator, 7)

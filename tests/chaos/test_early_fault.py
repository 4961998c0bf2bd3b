"""A rank is killed in its first moments, most often while the zygote still imports its later half (ftrain/preload.py).

These jobs start as a user's do, by new interpreters: in `ready.py`'s everything is imported already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jobs import Job, holding, ranks_of

SHAPE = ("--local-nodes", "1", "--nproc-per-node", "2")
STEPS = ("--steps", "8")


def pids(status: dict[str, Any]) -> list[int] | None:
    """All ranks have been started."""
    found = [rank["pid"] for rank in ranks_of(status).values()]
    return found if len(found) == 2 and all(found) else None


@pytest.mark.parametrize("flags", [(), ("--in-process", "--standby", "1")], ids=["new-processes", "same-processes"])
def test_a_rank_that_is_killed_before_its_first_step_costs_one_generation(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    quiet = Job(tmp_path / "quiet", *SHAPE, arguments=STEPS)
    job = Job(tmp_path / "killed", *SHAPE, *flags, arguments=(*STEPS, *holding(0)), anew=True)
    try:
        first = job.wait_for(pids, "the first processes")
        assert job.kill_rank(1) == first[1]
        job.wait_for(lambda s: s["generation"] == 2 and pids(s), "the next generation")
        job.go(0)
        assert job.wait() == 0, job.tail()
        assert quiet.wait() == 0, quiet.tail()
        assert job.ends() == quiet.ends()
        [fault] = job.faults()
        assert (fault["kind"], fault["state"], fault["steps_lost"]) == ("worker_exit", "closed", 0)
    finally:
        job.close()
        quiet.close()

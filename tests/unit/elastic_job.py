"""A job of MIN to MAX nodes, driven by hand: it runs, loses nodes, and what is left of it answers."""

from __future__ import annotations

import msgspec
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain.link import Certified
from ftrain_launcher.from_agent import Stopped
from ftrain_launcher.job.events import LAST_CALL_SECONDS, JobConfig, Progress, Tick
from ftrain_launcher.work import Durable
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.storage import DurableId

CERTIFIED = Certified(version=7, ranks=8, tensors=3, compared_bytes=9, counters=1, samplers={}, samples={}, seconds=0.1)


def elastic(least: int = 2, most: int = 4, *, parity: int = 1, hosts: bool = False, **more: object) -> JobConfig:
    whole = config(nodes=most, spares=0, parity=parity, nproc=2, hosts=hosts)
    return msgspec.structs.replace(whole, nodes_min=least, **more)


def running(job: Job, version: int = 5) -> None:
    """All run, and a snapshot is protected."""
    job.run()
    job.tell(Progress(job.coordinator.formed, version, version))


def lose_one(job: Job, node: str, version: int = 5) -> None:
    """A node is gone, the others hold the newest snapshot with its parity."""
    job.lose(node)
    job.stop_all({snapshot(version): WHOLE})


def answer_as(job: Job, node: str, position: int) -> None:
    """It has stopped, and holds its share of that position of generation 1's snapshot."""
    share = Holding(snapshot(5), position, *WHOLE)
    job.tell(Stopped(node=node, generation=job.coordinator.generation, inventory=Inventory((share,)), store_port=7))


def training(hosts: int, wanted: JobConfig) -> Job:
    """So many hosts have come, and have made a step."""
    job = Job(wanted)
    for number in range(hosts):
        job.come(f"host-{number}")
    job.tell(Tick(), after=LAST_CALL_SECONDS)
    job.stop_all()
    job.step_all()
    job.tell(Progress(1, 0, 0))
    return job


WRITTEN = DurableId(4, "file:///c/step-00000004", 8)


def with_storage(wanted: JobConfig) -> JobConfig:
    work = msgspec.structs.replace(wanted.work, durable=Durable(url="file:///c", every=10))
    return msgspec.structs.replace(wanted, work=work)

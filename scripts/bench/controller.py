"""One controller and very many agents: messages a second, memory, and how long forming a generation takes.

    .venv/bin/python scripts/bench/controller.py [--quick] [--json FILE] [--agents N] [--nodes N]

Over real sockets: a controller process as `ftrain run` starts it, and agents that say what agents say, on this machine;
they cost more than the controller does. In simulation: the pure coordinator alone, in one process. What has a limit is
processor time and memory, since a machine that is shared makes times longer, and how an event's cost grows with the
number of nodes. What does not come about in time ends the run: with the figures so far, one line, and exit code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import common
import msgspec
import psutil

from ftrain_launcher.from_agent import (
    FromAgent,
    Heartbeat,
    Join,
    RankRestored,
    RankState,
    RankStepped,
    Stopped,
    WorkerExit,
)
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Event, JobConfig, JobStarted, Joined, Send
from ftrain_launcher.jobs import JobFolder, JobRecord
from ftrain_launcher.line import LINE_ERRORS, open_line
from ftrain_launcher.packing import decode
from ftrain_launcher.to_agent import Form, Stop, ToAgent
from ftrain_launcher.work import Work
from ftrain_snapshot.inventory import Inventory

HEARTBEAT_SECONDS = 0.5
STEADY_SECONDS = 10.0
OPENING_AT_ONCE = 16
FILES_PER_AGENT = 2
RUN_SECONDS_MAX = 280.0
CONTROLLER_SECONDS_MAX = 60.0
CPU_SECONDS_PER_MESSAGE_MAX = 0.001
"""2,000 agents send 4,000 heartbeats a second at most: beyond this a controller would need more than its core."""
CPU_SECONDS_TO_FORM_MAX = 15.0
"""All lines are opened in it, too."""
MEMORY_MIB_MAX = 300.0
GROWTH_MAX = 2.0
"""What an event may cost with all nodes, over what it costs with a tenth of them."""
_encode = msgspec.msgpack.Encoder().encode


def config(nodes: int) -> JobConfig:
    """A job of so many hosts with a worker each, whose deadlines never come."""
    work = Work(
        job="bench",
        argv=("train.py",),
        folder="/",
        log_folder="/",
        nproc_per_node=1,
        snapshot_every=1,
        parity=1,
        max_restarts=1000,
    )
    return JobConfig(work=work, nodes=nodes, hosts=True, stop_timeout_seconds=300.0, heartbeat_timeout_seconds=120.0)


class Failed(Exception):
    """Something did not come about in time."""


class Agent:
    """Says what a node's agent says, and does nothing."""

    def __init__(self, number: int, tell: Callable[[FromAgent], Awaitable[None]] | None = None) -> None:
        self.node, self.tell = f"node-{number}", tell
        self.form: Form | None = None
        self.stopped = self.formed_at = 0.0

    def join(self) -> Join:
        """Its first message."""
        return Join(node=self.node, host="127.0.0.1", agent_pid=1, daemon_pid=1, daemon_port=1)

    def heartbeat(self) -> Heartbeat:
        """What it says twice a second."""
        number = self.form.generation if self.form is not None else 0
        ranks = () if self.form is None else (RankState(self.form.position, 0, 1, "running", 1),)
        return Heartbeat(node=self.node, generation=number, ranks=ranks, daemon_pid=1, daemon=None)

    def answers(self, message: ToAgent) -> list[Stopped | RankRestored | RankStepped]:
        """To what the controller wants."""
        match message:
            case Stop(generation, host_store):
                store_port = 1 if host_store else None
                inventory = Inventory(())
                return [Stopped(node=self.node, generation=generation, inventory=inventory, store_port=store_port)]
            case Form() as form:
                self.form, self.formed_at = form, time.monotonic()
                rank, now = form.position, time.time()
                restored = RankRestored(self.node, form.generation, rank, None, now)
                return [restored, RankStepped(self.node, form.generation, rank, 1, now)]
        return []

    def exit(self) -> WorkerExit:
        """Its worker was killed."""
        assert self.form is not None
        return WorkerExit(node=self.node, generation=self.form.generation, rank=self.form.position, pid=1, signal=9)


# ---- over real sockets


class Fleet:
    """Agents in this process, each with a line of its own to one controller."""

    def __init__(self, folder: JobFolder, count: int) -> None:
        self._folder = folder
        self.agents = [Agent(i) for i in range(count)]
        self.sent = self.tries_in_vain = 0
        self.heard_bytes = 0
        """Of all that the controller said."""
        self._opening = asyncio.Semaphore(OPENING_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """All come at once."""
        self._tasks = [asyncio.create_task(self._live(agent, i)) for i, agent in enumerate(self.agents)]

    async def _live(self, agent: Agent, number: int) -> None:
        endpoint, key = self._folder.endpoint(), self._folder.line_key()
        assert endpoint is not None
        async with self._opening:
            while True:
                line = open_line(endpoint, "/agent", lambda _: key, 240.0)
                with contextlib.suppress(*LINE_ERRORS):  # As agents do: try again.
                    socket = await line.__aenter__()
                    break
                self.tries_in_vain += 1

        async def tell(message: FromAgent) -> None:
            self.sent += 1
            await socket.send_bytes(_encode(message))

        agent.tell = tell
        await tell(agent.join())
        beat = asyncio.create_task(self._beat(agent, tell, number))
        try:
            async for frame in socket:
                self.heard_bytes += len(frame.data)
                for answer in agent.answers(decode(frame.data)):
                    await tell(answer)
        finally:
            beat.cancel()
            await line.__aexit__(None, None, None)

    async def _beat(self, agent: Agent, tell: Callable[[FromAgent], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(HEARTBEAT_SECONDS * number / len(self.agents))
        while agent.form is None:  # This process could not open lines and beat for all of them at once.
            await asyncio.sleep(HEARTBEAT_SECONDS)
        while True:
            await tell(agent.heartbeat())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def formed(self, generation: int) -> float:
        """Wait until all have been told of a generation; when the last one was (monotonic).

        Raises:
            Failed: it takes too long, or an agent's line was closed.
        """
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while (told := self._told(generation)) < len(self.agents):
            ended = next((task for task in self._tasks if task.done()), None)
            if ended is not None:
                raise Failed(f"the controller hung up before generation {generation} was formed: {ended.exception()}")
            if time.monotonic() > deadline:
                here = f"{told} of {len(self.agents)} agents were told"
                raise Failed(f"generation {generation} was not formed within {RUN_SECONDS_MAX:g} s: {here}")
            await asyncio.sleep(0.05)
        return max(a.formed_at for a in self.agents)

    def _told(self, generation: int) -> int:
        return sum(a.form is not None and a.form.generation == generation for a in self.agents)

    async def close(self) -> None:
        """All hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def over_sockets(report: common.Report, count: int, steady_seconds: float) -> None:
    """A controller process, and so many agents."""
    record = JobRecord(
        name="bench", created=time.time(), launcher_pid=os.getpid(), arena_folder="/nowhere", config=config(count)
    )
    folder = JobFolder.create(record)
    command = [sys.executable, "-P", "-m", "ftrain_launcher.control.controller", "--job-folder", str(folder.path)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    fleet = Fleet(folder, count)
    try:
        async with asyncio.timeout(CONTROLLER_SECONDS_MAX):
            while folder.endpoint() is None:
                await asyncio.sleep(0.05)
        await _measure(report, fleet, psutil.Process(process.pid), steady_seconds)
    finally:
        await fleet.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _measure(report: common.Report, fleet: Fleet, watched: psutil.Process, steady_seconds: float) -> None:
    count, empty = len(fleet.agents), watched.memory_info().rss
    name = f"{count} agents over sockets"
    cpu, began = _cpu(watched), time.monotonic()
    fleet.start()
    report.add(f"{name}: first connection to a formed generation", await fleet.formed(1) - began, "s")
    report.add(f"{name}: controller's time for that", _cpu(watched) - cpu, "s", CPU_SECONDS_TO_FORM_MAX)
    report.add(f"{name}: connections tried in vain", fleet.tries_in_vain, "")
    await asyncio.sleep(2.0)
    cpu, sent, began = _cpu(watched), fleet.sent, time.monotonic()
    await asyncio.sleep(steady_seconds)
    seconds, messages, cpu = time.monotonic() - began, fleet.sent - sent, _cpu(watched) - cpu
    report.add(f"{name}: messages", messages / seconds, "1/s")
    report.add(f"{name}: controller's time a message", cpu / messages * 1e3, "ms", CPU_SECONDS_PER_MESSAGE_MAX * 1e3)
    report.add(f"{name}: controller's share of a core", cpu / seconds, "cores")
    began, victim = time.monotonic(), fleet.agents[count // 2]
    assert victim.tell is not None
    cpu, told = _cpu(watched), fleet.heard_bytes
    await victim.tell(victim.exit())
    report.add(f"{name}: a killed worker to the last agent's Form", await fleet.formed(2) - began, "s")
    report.add(f"{name}: controller's time for that", _cpu(watched) - cpu, "s")
    report.add(f"{name}: bytes told for that", (fleet.heard_bytes - told) / 2**20, "MiB")
    report.add(f"{name}: controller's memory", watched.memory_info().rss / 2**20, "MiB")
    report.add(f"{name}: at most", _peak_bytes(watched.pid) / 2**20, "MiB", MEMORY_MIB_MAX)
    report.add(f"{name}: memory an agent", (watched.memory_info().rss - empty) / count / 2**10, "KiB")


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM"))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


# ---- in simulation


class Simulated:
    """The pure coordinator and agents that answer at once."""

    def __init__(self, nodes: int) -> None:
        self.coordinator = Coordinator(config(nodes))
        self.agents = {f"node-{i}": Agent(i) for i in range(nodes)}
        self.events = 0
        self.seconds = 0.0
        """Of processor time, in the coordinator alone."""

    def handle(self, event: Event) -> None:
        """This, and all that follows from it."""
        waiting: list[Event] = [event]
        while waiting:
            following: list[Event] = []
            for one in waiting:
                began = time.process_time()
                commands = self.coordinator.handle(one, float(self.events))
                self.coordinator.next_deadline()
                self.seconds += time.process_time() - began
                self.events += 1
                for command in commands:
                    if isinstance(command, Send):
                        following += self.agents[command.node].answers(command.message)
            waiting = following

    def begin(self) -> None:
        """All come; the first generation is formed and trains."""
        self.handle(JobStarted(self.coordinator.config))
        for number, agent in enumerate(self.agents.values()):
            self.handle(Joined(agent.join(), number))
        assert self.coordinator.formed == 1

    def lose_a_worker(self) -> None:
        """Another generation."""
        self.handle(self.agents["node-1"].exit())
        assert self.coordinator.formed == 2


def in_simulation(report: common.Report, nodes: int) -> None:
    """The coordinator of so many nodes, and of a tenth of them for comparison."""
    costs = []
    for count in (nodes // 10, nodes):
        before = psutil.Process().memory_info().rss
        job = Simulated(count)
        job.begin()
        name = f"{count} nodes in simulation"
        costs.append(job.seconds / job.events)
        report.add(f"{name}: events", job.events / job.seconds, "1/s")
        seconds = job.seconds
        job.lose_a_worker()
        report.add(f"{name}: to form a generation", job.seconds - seconds, "s")
        costs[-1] = job.seconds / job.events
        report.add(f"{name}: memory, agents included", (psutil.Process().memory_info().rss - before) / 2**20, "MiB")
    report.add("an event, over one with a tenth of the nodes", costs[1] / costs[0], "x", GROWTH_MAX)


def main() -> None:
    """Run it."""
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, metavar="N", help="over sockets; default 2000, quick: 200")
    parser.add_argument("--nodes", type=int, metavar="N", help="in simulation; default 50000, quick: 5000")
    chosen = parser.parse_args()
    agents = chosen.agents or (200 if chosen.quick else 2000)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES_PER_AGENT * agents + 1000), hard))
    report = common.Report("controller")
    # First, while this process has no memory that was used before.
    in_simulation(report, chosen.nodes or (5000 if chosen.quick else 50_000))
    with tempfile.TemporaryDirectory() as home:
        os.environ["FTRAIN_HOME"] = str(Path(home) / "home")
        failure = ""
        try:
            asyncio.run(over_sockets(report, agents, 3.0 if chosen.quick else STEADY_SECONDS))
        except Failed as error:
            failure = str(error)
        except TimeoutError:
            failure = f"the controller did not listen within {CONTROLLER_SECONDS_MAX:g} s"
    report.write(chosen.json)
    if failure:
        sys.exit(failure)


if __name__ == "__main__":
    main()

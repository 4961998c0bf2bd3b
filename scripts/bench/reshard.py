"""Fewer nodes and more again, from memory: what it costs and whether anything is lost, against torchrun and DCP.

    .venv/bin/python scripts/bench/reshard.py [--quick] [--json FILE] [--mib N] [--dense] [--changes N]
                                              [--only PART ...]

*recovery*: FSDP2 on four nodes (reshard_worker.py), ``--local-nodes 3:4``, no spare; one node is lost with its memory,
and the job goes on with three, in new processes or (``--in-process``) in those that are left. torchrun: four agents,
``--nnodes 3:4`` with the tightest settings that work (FACTS 5), a DCP checkpoint on tmpfs at each step, and as much
state. From the kill to the first step of all ranks, and to one that nobody had done. On both sides layers take turns: a
step goes through four of them, for one through all of them (``--dense``) gathers all parameters twice, through gloo and
two cores, which takes longer than all else and is the same for both. What reading the state took is noted by the ranks
themselves, beside one copy of the same bytes into warm memory, and one into fresh memory, all ranks at once; torchrun's
ranks do so for ``dcp.load``. Processor time is the ranks' own: that of the daemons, which fetch and decode, is not in
it.

*curve*: 4 -> 3 -> 4 nodes against a job that is left alone, same seed: losses step by step, in both modes of summing.

*changes*: nodes are lost, and come back, again and again, in two jobs side by side, which mostly wait; the ranks note
their samples, and each must have been trained on once in each epoch. *drain*: planned changes, a node that is taken
out and one that joins; no step may be done twice, or not at all.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
from common import CLEAN_TIMEOUT_SECONDS, ROOT, Report, median, parser
from job import FTRAIN, MARK, STOP_TIMEOUT_SECONDS, Job, JobFailed, Json, mark_session, ranks
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, wait_until_clean
from processors import Given
from reshard_notes import Again, again, generations_of, lines_of, losses, reads_of, samples_of

WORKER = ROOT / "scripts" / "bench" / "reshard_worker.py"
NODES = 4
PARTS = ("recovery", "curve", "changes", "drain")
TIMEOUT_SECONDS = 300.0
WARM_STEPS = 4
SMALL_MIB = 0
"""Two small layers: of the jobs whose losses and samples are looked at, which are computed by micro-batches."""
CURVE_STEPS, CURVE_FAULT = 200, 60
CHANGES_JOBS = 2
GLOBAL_BATCH, EPOCH_STEPS = 24, 40
"""As in the worker."""
DRAIN_STEPS = 200
TIGHTEST = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"


def wait_until(what: str, alive: Callable[[], bool], condition: Callable[[], bool]) -> None:
    """Raises RuntimeError if it does not come to be."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the job did not get {what}")
        time.sleep(0.05)


def wait_again(folder: Path, killed_at: float, world: int, alive: Callable[[], bool]) -> tuple[Again, float]:
    """Until so many new processes train, and have noted what reading their state took; and what the host gave of the
    processors' time till then."""
    found: list[Again] = []
    begun = Given.now()

    def all_there() -> bool:
        found[:] = [each for each in (again(lines_of(folder), killed_at, world),) if each is not None]
        return bool(found)

    wait_until("going again", alive, all_there)
    wait_until("noting its reads", alive, lambda: len(reads_of(folder, world)) >= world)
    return found[0], Given.now().share_since(begun)


class Started:
    """A job of ours on emulated nodes, and the folder that its ranks write to."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        *flags: str,
        mib: int,
        steps: int,
        pause_seconds: float,
        options: Sequence[str] = (),
    ) -> None:
        """``options``: more for the worker."""
        folder.mkdir()
        self.folder = folder
        arguments = ["ftrain", str(folder), "--mib", str(mib), "--steps", str(steps)]
        if pause_seconds:
            self.slow()
        arguments += ["--pause-seconds", str(pause_seconds), *(["--micro"] if mib == SMALL_MIB else []), *options]
        flags = ("--nproc-per-node", "1", "--snapshot-every", "1", "--max-restarts", "1000", *flags)
        self.job = stack.enter_context(
            Job(f"bench-{folder.name}-{os.getpid()}", flags, WORKER, arguments, folder / "log")
        )

    def alive(self) -> bool:
        return self.job.process.poll() is None

    def slow(self, *, down: bool = True) -> None:
        """From now on steps take ``pause_seconds``, or as long as they need."""
        if down:
            (self.folder / "slow").touch()
        else:
            (self.folder / "slow").unlink()

    def wait_world(self, size: int, more_steps: int = 2, after: int = 0) -> Json:
        """Until so many ranks train, in a generation ``after`` that one, and have come on; the status."""

        def steps(status: Json) -> list[int]:
            is_now = status["state"] == "running" and status["generation"] > after
            found = [rank["step"] for rank in ranks(status).values()] if is_now else []
            return [step for step in found if step is not None] if len(found) == size else []

        first = self.job.wait_for(f"{size} ranks", lambda s: len(steps(s)) == size, TIMEOUT_SECONDS)
        target = max(steps(first)) + more_steps
        return self.job.wait_for("coming on", lambda s: min(steps(s), default=-1) >= target, TIMEOUT_SECONDS)

    def wait_back(self, before: Json, more_steps: int = 2) -> Json:
        """Until the job has given a node up and has one more again. The smaller world may be over between two looks."""
        return self.wait_world(NODES, more_steps, after=before["generation"])

    def lose(self, status: Json, chance: random.Random) -> float:
        """Lose one of the nodes that have ranks; when."""
        active = [node for node in status["nodes"] if node["ranks"]]
        return self.job.lose_node(active[chance.randrange(len(active))])


# ---- recovery


def recovery(report: Report, folder: Path, mib: int, dense: bool, chance: random.Random) -> None:
    """From a lost node to the first new step on three, and what reading took."""
    layers = ["--dense"] if dense else []
    own, own_given = our_recovery(folder / "ours", mib, layers, chance)
    staying, staying_given = our_recovery(folder / "staying", mib, layers, chance, "--in-process")
    theirs, their_given = rival_recovery(folder / "theirs", mib, layers)
    report.add("node lost, ftrain: to the first step on 3 nodes", own.any_step, "s")
    report.add("the same, ftrain --in-process", staying.any_step, "s")
    report.add("the same, torchrun --nnodes 3:4, tightest settings", theirs.any_step, "s")
    report.add("ftrain over torchrun", own.any_step / theirs.any_step, "ratio", 0.2)
    report.add("ftrain --in-process over torchrun", staying.any_step / theirs.any_step, "ratio", 0.2)
    report.add("node lost, ftrain: to the first step that nobody had done", own.new_step, "s")
    report.add("the same, ftrain --in-process", staying.new_step, "s")
    report.add("the same, torchrun", theirs.new_step, "s")
    report.add("ftrain over torchrun", own.new_step / theirs.new_step, "ratio")
    for side, given in (("ftrain", own_given), ("ftrain --in-process", staying_given), ("torchrun", their_given)):
        report.add(f"of the processors' time till then, what the host gave, {side}", given, "share")
    mine, dcp = reads_of(folder / "ours", NODES - 1), reads_of(folder / "theirs", NODES - 1)
    for side, entries in (("ftrain", mine), ("torchrun", dcp)):
        report.add(f"the first step itself, {side}", max(entry["step_seconds"] for entry in entries), "s")
    slowest = median([max(entry["read_seconds"] for entry in mine)])
    report.add("reading 4 -> 3, one node decoded", slowest, "s")
    report.add("the same over one copy", slowest / max(entry["copy_seconds"] for entry in mine), "ratio", 10)
    unit = max(entry["fresh_copy_seconds"] for entry in mine)
    report.add("the same over one copy into fresh memory", slowest / unit, "ratio")
    for side, entries in (("ftrain", mine), ("dcp.load", dcp)):
        report.add(f"processor time of reading, all ranks, {side}", sum(e["processor_seconds"] for e in entries), "s")
    report.add("the same over dcp.load from tmpfs", slowest / max(entry["read_seconds"] for entry in dcp), "ratio", 1)
    saves = [float(line) for path in (folder / "theirs").glob("save-*") for line in path.read_text().split()]
    report.add("dcp.save to tmpfs, at each step", median(saves), "s")
    report.add("dcp.load from tmpfs", max(entry["read_seconds"] for entry in dcp), "s")
    for side, entries, limit in (("ftrain", mine, 0.1), ("dcp.load", dcp, None)):
        peak = max(entry["peak_bytes"] / entry["state_bytes"] for entry in entries)
        report.add(f"extra memory while reading, share of a rank's state, {side}", peak, "ratio", limit)


def our_recovery(
    folder: Path, mib: int, layers: Sequence[str], chance: random.Random, *flags: str
) -> tuple[Again, float]:
    """Four emulated nodes; one is killed with its memory."""
    with ExitStack() as stack:
        started = Started(
            stack, folder, "--local-nodes", "3:4", *flags, mib=mib, steps=10**6, pause_seconds=0.0, options=layers
        )
        status = started.wait_world(NODES, WARM_STEPS)
        started.job.wait_for("protected", lambda s: s["snapshots"]["protected"] is not None, TIMEOUT_SECONDS)
        killed_at = started.lose(status, chance)
        return wait_again(folder, killed_at, NODES - 1, started.alive)


def rival_recovery(folder: Path, mib: int, layers: Sequence[str]) -> tuple[Again, float]:
    """Four torchrun agents; one that does not host the rendezvous is killed with its worker."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "3:4", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "bench"]
    command += [
        "--rdzv-conf",
        TIGHTEST,
        "--monitor-interval",
        "0.05",
        "--max-restarts",
        "100",
        "--local-addr",
        "127.0.0.1",
    ]
    command += [str(WORKER), "torchrun", str(folder), "--mib", str(mib), "--steps", str(10**6), *layers]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    agents: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(NODES):
            with (folder / f"log-{number}").open("wb") as log:
                agents.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
            time.sleep(0.5)  # the first one is to host the rendezvous

        def alive() -> bool:
            return all(agent.poll() is None for agent in agents[: NODES - 1])

        def warm() -> bool:
            done = Counter(line.run for line in lines_of(folder))
            return len(done) >= NODES and min(done.values()) >= WARM_STEPS

        wait_until("warm", alive, warm)
        lost = psutil.Process(agents[-1].pid)
        for process in [lost, *lost.children(recursive=True)]:
            process.kill()
        return wait_again(folder, time.time(), NODES - 1, alive)
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in agents:
            try:
                agent.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait(STOP_TIMEOUT_SECONDS)


# ---- what the losses and the samples say


def trained(
    folder: Path, steps: int, *flags: str, change: Callable[[Started], None], pause_seconds: float = 0.0
) -> Path:
    """A small job to its end, and what is done to it meanwhile."""
    with ExitStack() as stack:
        started = Started(
            stack, folder, "--local-nodes", "3:4", *flags, mib=SMALL_MIB, steps=steps, pause_seconds=pause_seconds
        )
        change(started)
        started.job.wait_ended(TIMEOUT_SECONDS)
    return folder


def curve(report: Report, folder: Path, chance: random.Random) -> None:
    """4 -> 3 -> 4 against a job that is left alone."""

    def shrink_and_grow(started: Started) -> None:
        before = started.wait_world(NODES, CURVE_FAULT)
        started.lose(before, chance)
        started.wait_back(before)
        started.slow(down=False)

    for mode, flags, limit in (("default", (), 1e-5), ("bit-exact", ("--deterministic-reduction",), 0.0)):
        quiet = trained(folder / f"quiet-{mode}", CURVE_STEPS, *flags, change=lambda _: None)
        moved = trained(folder / f"moved-{mode}", CURVE_STEPS, *flags, change=shrink_and_grow, pause_seconds=0.2)
        pairs = [(losses(quiet)[step], losses(moved)[step]) for step in range(CURVE_STEPS)]
        worst = max(abs(a - b) / abs(a) for a, b in pairs)
        report.add(f"losses of 4 -> 3 -> 4, {mode}, largest relative difference in 200 steps", worst, "ratio", limit)


def changes(report: Report, folder: Path, count: int, chance: random.Random) -> None:
    """Nodes are lost and come back; the samples of whole epochs are counted."""

    def many(name: str, seed: int) -> dict[int, list[int]]:
        own_chance, path = random.Random(seed), folder / name
        with ExitStack() as stack:
            started = Started(
                stack, path, "--local-nodes", "3:4", mib=SMALL_MIB, steps=10**6, pause_seconds=0.05
            )  # fmt: skip
            for _ in range(-(-count // (2 * CHANGES_JOBS))):
                before = started.wait_world(NODES, 1)
                started.lose(before, own_chance)
                started.wait_back(before, 1)
            status = started.wait_world(NODES, EPOCH_STEPS)  # the last one is looked at, too
            started.job.process.send_signal(signal.SIGINT)
            started.job.process.wait(STOP_TIMEOUT_SECONDS)
        done[name] = status["generation"] - 1
        return samples_of(path)

    done: dict[str, int] = {}
    with ThreadPoolExecutor(CHANGES_JOBS) as pool:
        jobs = [pool.submit(many, f"many-{number}", chance.randrange(2**32)) for number in range(CHANGES_JOBS)]
        every = [job.result() for job in jobs]
    epochs = wrong = 0
    for seen in every:
        for epoch in range(max(seen) // EPOCH_STEPS):
            steps = range(epoch * EPOCH_STEPS, (epoch + 1) * EPOCH_STEPS)
            times = Counter(sample for step in steps for sample in seen.get(step, ()))
            wrong += sum(times[sample] != 1 for sample in range(EPOCH_STEPS * GLOBAL_BATCH))
            epochs += 1
    report.add(f"changes of the world, in {epochs} epochs", sum(done.values()), "count")
    report.add("samples seen more or less than once in an epoch", wrong, "count", 0)


def drain(report: Report, folder: Path, chance: random.Random) -> None:
    """An operator takes a node out, none is there instead, and another one joins: steps that were done twice."""

    def take_out(started: Started) -> None:
        status = started.wait_world(NODES, 20)
        active = [node["name"] for node in status["nodes"] if node["ranks"]]
        command = [FTRAIN, "drain", active[chance.randrange(NODES)], "--job", started.job.name]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
        started.wait_back(status)
        started.slow(down=False)

    path = trained(folder / "drain", DRAIN_STEPS, change=take_out, pause_seconds=0.2)
    generations = generations_of(path)
    again = sum(len(each) - 1 for each in generations.values())
    report.add("planned changes", len(set().union(*generations.values())) - 1, "count")
    report.add("steps done twice by them", again, "count", 0)
    report.add("steps not done at all", DRAIN_STEPS - len(generations), "count", 0)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--mib", type=int, help="state in all; default 2048, quick 96")
    options.add_argument("--dense", action="store_true", help="recovery: each step goes through all layers")
    options.add_argument("--changes", type=int, help="default 50, quick 4")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = options.parse_args()
    print(f"seed {args.seed}")
    chance, mark, before = random.Random(args.seed), mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    report = Report("Fewer nodes and more again")
    with tempfile.TemporaryDirectory(prefix="reshard-", dir=SHARED_MEMORY) as tmpfs:
        folder = Path(tmpfs)
        os.environ["FTRAIN_HOME"] = str(folder / "home")
        mib, count = args.mib or (96 if args.quick else 2048), args.changes or (4 if args.quick else 50)
        parts: dict[str, Callable[[], None]] = {
            "recovery": lambda: recovery(report, folder, mib, args.dense, chance),
            "curve": lambda: curve(report, folder, chance),
            "changes": lambda: changes(report, folder, count, chance),
            "drain": lambda: drain(report, folder, chance),
        }
        for name in args.only:
            begun, shown = time.monotonic(), len(report.rows)
            try:
                parts[name]()
            except (JobFailed, RuntimeError, subprocess.SubprocessError) as error:
                print(f"{name}: {error}")
                report.add(f"{name}: not finished", 1, "count", 0)
            print(f"{name}: {time.monotonic() - begun:.0f} s")
            for row in report.rows[shown:]:  # the table comes at the end, and shows three digits
                print(f"    {row.figure}: {row.value:.4g} {row.unit}", flush=True)
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, mark):
        os.kill(pid, signal.SIGKILL)
    report.add("processes and shared memory left behind", len(left), "count", 0)
    report.write(args.json)
    print("\n".join(left), end="\n" if left else "")


if __name__ == "__main__":
    main()

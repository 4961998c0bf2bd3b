"""The faults of the campaign, each as it happens to users; and the innocent cases that look like one.

A fault strikes one rank at one step, in the job's first generation only, so that a job that recovers also ends. Each
writes down the moment before it strikes, in ``OUT/fault-RANK``: Unix seconds, and the step.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import queue
import signal
import threading
import time

import torch
import torch.distributed as dist
from torch import nn

CRASHES = ("kill",)
HANGS = ("stop", "spin", "sleep", "loader")
"""The rank does not get to its next operation: a stopped process, a loop that holds the GIL, a sleep, a data loader
whose thread is deadlocked."""
MISMATCHES = ("skip", "order", "shape", "swallowed")
"""An operation left out, two in another order, one of another shape, an exception in the middle of a step that the
user's code swallows."""
SLOW = ("slow", "quota")
"""More work; or the same, with less of a processor."""
INNOCENT = ("slow_start", "evaluation", "checkpoint", "data_stall")
FAULTS = (*CRASHES, *HANGS, *MISMATCHES, *SLOW, *INNOCENT, "bit")

BUSY_SHARE = 0.1
"""Of the work, what takes a processor's time where that is what a rank is short of."""
WRONG_ELEMENTS = 17
FLIPPED_BIT = 20

Reduction = tuple[torch.Tensor, dist.ProcessGroup | None]
"""What is summed up, and among whom."""


class SampleError(Exception):
    """Of the fault *swallowed*."""


class Mischief:
    """Does what ``--fault`` says at its rank and step."""

    def __init__(self, args: argparse.Namespace, rank: int, generation: int) -> None:
        self._args, self._rank = args, rank
        self._kind = args.fault if generation == 1 else "none"
        self._step = -1
        self._strikes = self._struck = False
        """The fault is due; it has begun."""

    def begin(self, step: int) -> None:
        """A step begins: is it the one? What stalls a whole step happens here."""
        args, self._step = self._args, step
        self._strikes = self._rank == args.rank and step == args.at_step
        match self._kind:
            case "slow_start" if step == 0 and self._rank == args.rank:
                self._tell()
                time.sleep(args.seconds)
            case "evaluation" if step == args.at_step:
                if self._rank == 0:
                    self._tell()
                    time.sleep(args.seconds)
                dist.barrier()
            case "checkpoint" | "data_stall" if step == args.at_step:
                self._tell()
                time.sleep(args.seconds * (1 + 0.1 * (self._rank % 4)))  # in all ranks, not for equally long
            case "quota" if self._strikes:
                self._tell()
                (args.cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def compute(self, seconds: float) -> None:
        """So much work."""
        busy = BUSY_SHARE * seconds if self._args.fault == "quota" else 0.0
        time.sleep(seconds - busy)
        _use_processor(busy)
        if self._kind == "slow" and self._rank == self._args.rank and self._step >= self._args.at_step:
            self._tell()
            end = time.perf_counter() + seconds * (self._args.factor - 1.0)
            while time.perf_counter() < end:
                pass

    def between_operations(self) -> None:
        """In the middle of a step: here ranks hang, or are lost.

        Raises:
            SampleError: for the script to swallow.
        """
        if not self._strikes or self._kind not in (*CRASHES, *HANGS, "swallowed"):
            return
        self._tell()
        match self._kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "spin":
                collections.deque(itertools.repeat(0), maxlen=0)
            case "sleep":
                time.sleep(3600)
            case "loader":
                _wait_for_batch()
            case "swallowed":
                raise SampleError

    def reduce_both(self, first: Reduction, second: Reduction) -> None:
        """Two operations of the step, one after the other, which one of the ranks gets wrong.

        In another order they must not both come through: they are of one group, or the one waits for the other.
        """
        kind = self._kind if self._strikes else "none"
        if kind in ("skip", "order", "shape"):
            self._tell()
        match kind:
            case "skip":
                operations = [second]
            case "order":
                operations = [second, first]
            case "shape":
                operations = [(torch.ones(WRONG_ELEMENTS), first[1]), second]
            case _:
                operations = [first, second]
        for tensor, group in operations:
            dist.all_reduce(tensor, group=group)

    def after_step(self, parameters: list[nn.Parameter]) -> None:
        """The weights are settled: one of them loses a bit."""
        if self._strikes and self._kind == "bit":
            self._tell()
            parameters[0].data.view(torch.int32).view(-1)[7] ^= 1 << FLIPPED_BIT

    def _tell(self) -> None:
        if not self._struck:
            self._struck = True
            (self._args.out / f"fault-{self._rank}").write_text(f"{time.time():.6f} {self._step}\n")


def _use_processor(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _wait_for_batch() -> None:
    """A loader's thread waits for a lock that it holds already; the training thread waits for the batch."""
    batches: queue.Queue[int] = queue.Queue()
    lock = threading.Lock()

    def load() -> None:
        with lock, lock:
            batches.put(1)

    threading.Thread(target=load, daemon=True).start()
    batches.get()

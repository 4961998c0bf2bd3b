"""``@ftrain.resilient`` and ``ftrain.Context``: what a training script sees.

The decorator forms the process group, hands the function its context, and reports how the function ended. The same
script trains under `ftrain run`, torchrun and plain python; only the first protects it.
"""

from __future__ import annotations

import cmath
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

import torch

from ftrain import outcome, rejoin
from ftrain.comm import worker as recorder
from ftrain.environment import JobEnvironment, WorkerEnvironment, read_environment
from ftrain.errors import ArenaFull, ExactMisuse, FtrainError, GenerationEnded, LossNotFinite, StepOrder
from ftrain.exact.keyed import KeyedRandom, derive_seed
from ftrain.exact.loop import Exact, MicroBatch
from ftrain.group import choose_device, process_group
from ftrain.link import AgentLink, Finished, Hello, OutOfMemory
from ftrain.logical.rules import Rules
from ftrain.mesh import mesh_sizes
from ftrain.sampler import ElasticSampler
from ftrain.session import Session
from ftrain.state import check_trackable, collect, state_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ftrain.reshard.storage import SnapshotReader

P = ParamSpec("P")
R = TypeVar("R")


class NotProtected(UserWarning):
    """The script was not started by `ftrain run`: a fault ends it."""


class Context:
    """A rank's view of the job; made by `resilient`, one per run of the function."""

    def __init__(self, environment: WorkerEnvironment, device: torch.device, session: Session | None) -> None:
        self._environment = environment
        self._device = device
        self._session = session
        self._tracked: dict[str, Any] = {}
        self._exact = Exact(self._tracked, deterministic=environment.deterministic_reduction)
        start = environment.job.start if environment.job is not None else None
        self._next_step = 0 if start is None else start + 1
        self._current: int | None = None
        self._start_read = False
        self._has_tracked = self._begun = False
        self._not_finite: list[int] = []

    @property
    def rank(self) -> int:
        """This process's number in the job."""
        return self._environment.rank

    @property
    def local_rank(self) -> int:
        """This process's number on its node, and its GPU's; 0 with ``--virtual-local-rank``."""
        return self._environment.device_index

    @property
    def world_size(self) -> int:
        """How many ranks the job has."""
        return self._environment.world_size

    @property
    def device(self) -> torch.device:
        """Where to put model and data: this rank's GPU, or the CPU."""
        return self._device

    @property
    def generation(self) -> int:
        """How often the job has been formed, from 1."""
        return self._environment.job.generation if self._environment.job is not None else 1

    @property
    def start_step(self) -> int:
        """The first step that is still to be done.

        Read it where a loop of your own begins: there, at its first reading after `track`, the generators of a resumed
        run are put back once more, so that it does not matter what was drawn since then.
        """
        if self._session is not None and self._tracked and not self._start_read:
            self._start_read = True
            self._session.rewind_generators()
        return self._next_step

    def track(self, **objects: Any) -> None:
        """Make these objects part of the job's state, and restore them if the job resumes.

        Anything with ``state_dict`` and ``load_state_dict``: models (wrapped in DDP or not), optimizers, schedulers,
        samplers, your own. Track all that steps change, after it is built and before the first step; the ranks do
        so in the same order. Generators (Python, NumPy, torch) are tracked always.

        Raises NotTrackable naming what cannot be kept, StateMismatch if the snapshot does not fit, StepOrder after the
        first step, ValueError for a name that another object has, ExactMisuse for a sampler that is being read already.
        """
        if self._session is not None and self._begun and not self._tracked.keys() >= objects.keys():
            raise StepOrder("call ctx.track before the first step: what comes later could not be put back in time")
        for name, tracked in objects.items():
            check_trackable(name, tracked)
            if self._tracked.get(name, tracked) is not tracked:
                raise ValueError(f"{name} is tracked already, as another object")
            if self.generation == 1 and isinstance(tracked, ElasticSampler) and tracked.fetched_ahead:
                raise ExactMisuse(f"a loader has begun to fetch from {name}: call iter(loader) after ctx.track")
            collect({name: state_of(tracked)["state"]})
        self._tracked.update(objects)
        self._has_tracked = True
        if self._session is not None:
            self._session.track(objects)

    def layout(self, rules: Mapping[str, str], mesh: DeviceMesh | None = None) -> None:
        """Say how tensors are spread that are neither DTensors nor inside DDP, by patterns of their names.

        ``mesh`` names the dimensions that the rules speak of; without one there is ``world``. Call it before `track`.
        A job of another size can then read them; docs/resharding.md has the language. Raises LayoutInvalid, ValueError
        after `track`.
        """
        from ftrain.logical.live import named_mesh  # it takes FSDP along, which few scripts need this early

        if self._tracked:
            raise ValueError("call ctx.layout before ctx.track: what is tracked is restored at once")
        read, named = Rules(rules), None if mesh is None else named_mesh(mesh)
        if self._session is not None:
            self._session.describer.rules, self._session.describer.mesh = read, named

    def mesh(self, *names: str, **sizes: int) -> DeviceMesh:
        """The device mesh for the world as it is now: ``ctx.mesh("dp", "tp", tp=2)``.

        At most one dimension has no size: it takes what remains, so that it is the one to give way when nodes are
        lost. Raises MeshImpossible where the sizes cannot be had from this number of ranks: a job of MIN to MAX nodes
        then goes on with fewer of them, if that fits. Where another mesh would do, ask for it by `world_size`.
        """
        from torch.distributed.device_mesh import init_device_mesh

        shape = mesh_sizes(names, sizes, self.world_size)
        return init_device_mesh(self._device.type, shape, mesh_dim_names=names)

    def snapshot_reader(self) -> SnapshotReader | None:
        """For ``torch.distributed.checkpoint.load``: what another world captured and this one starts from.

        For scripts that load a state themselves rather than by `track`; until the first step. None: there is no such
        snapshot.
        """
        return None if self._session is None else self._session.snapshot_reader()

    def steps(self, total: int) -> Iterator[int]:
        """Yield the steps that are still to be done, up to ``total - 1``; commit each when its iteration ends.

        The last one is always captured. Leaving the loop early leaves the step at hand uncommitted.

        Raises StepOrder if nothing was tracked.
        """
        if self._session is not None:
            self._begin()
            self._session.rewind_generators()
            self._session.begin()
        for step in range(self._next_step, total):
            self._current = step
            yield step
            if self._next_step == step:  # else the loop has committed it itself
                self._commit(step, last=step == total - 1)
        self._current = None

    def commit(self, step: int) -> None:
        """Step ``step`` is done, for loops that do not use `steps`: from `start_step` on, one by one.

        Raises StepOrder if it is not the next one, or nothing was tracked.
        """
        if step != self._next_step:
            raise StepOrder(f"step {step!r} was committed, but the next one is {self._next_step}")
        self._commit(step, last=False)

    def log(self, message: str | None = None, **values: Any) -> None:
        """Print one line with the step: ``step=12 loss=2.30258512 message``; numbers with nine digits.

        A ``loss`` that is infinite or no number keeps the state out of the snapshots until one that is finite.

        Raises LossNotFinite at the second such step in a row, unless the job was told to go on.
        """
        step = self._at
        if "loss" in values and self._session is not None:
            self._judge(step, values["loss"], self._session)
        fields = [f"step={step}", *(f"{name}={_readable(value)}" for name, value in values.items())]
        print(*fields, *([message] if message is not None else []), flush=True)

    def microbatches(self, loader: Any) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of the next global batch: the same ones at any world size.

        ``loader`` is a ``DataLoader`` with an `ElasticSampler` that has a ``micro_batch``, or with an `ElasticStream`.
        For each: forward, then ``ctx.scale_loss(loss, micro.samples).backward()``. When the loop is over, the
        gradients of all tracked models are the mean over the global batch, on every rank. Once for each optimizer
        step. Raises ExactMisuse.
        """
        return self._exact.microbatches(loader)

    def scale_loss(self, loss: torch.Tensor, samples: int) -> torch.Tensor:
        """Weigh a loss, a mean over ``samples``, so that gradients become the mean over the global batch.

        In `microbatches`, or with this rank's batch from an `ElasticSampler`; call ``backward`` on what it returns.
        From the first use on the gradients of all tracked models are summed and divided by the global batch: give
        every loss to it. Raises ExactMisuse.
        """
        return self._exact.scale_loss(loss, samples, self._at)

    def global_loss(self) -> float:
        """After a loop over `microbatches`: the mean of its losses over the global batch, the same on every rank.

        A collective. Raises ExactMisuse where there was no such loop, or within one.
        """
        return self._exact.global_loss()

    def clip_grad_norm(self, max_norm: float) -> float:
        """Like torch's ``clip_grad_norm_`` for all tracked models; the same bits however FSDP2 cuts the gradients.

        Returns the norm before. A collective. Raises ExactMisuse for gradients that are cut over several meshes.
        """
        return self._exact.clip_grad_norm(max_norm)

    def rng(self, *purpose: int | str, seed: int = 0, sample: int | None = None) -> KeyedRandom:
        """Randomness that belongs to the micro-batch at hand, or to a sample, and not to the rank.

        ``with ctx.rng("dropout"):`` seeds torch's default generators; ``ctx.rng("crop", sample=i).generator()`` is a
        generator of its own. The key is (``seed``, step, micro-batch or sample, ``purpose``): outside `microbatches`,
        and without a sample, all ranks get the same.
        """
        place = ("sample", sample) if sample is not None else ("micro-batch", self._exact.number)
        return KeyedRandom(derive_seed(seed, self._at, *place, *purpose))

    @property
    def _at(self) -> int:
        """The step at hand."""
        return self._current if self._current is not None else self._next_step

    def _judge(self, step: int, loss: Any, session: Session) -> None:
        number = loss.item() if isinstance(loss, torch.Tensor) and loss.numel() == 1 else loss
        if not isinstance(number, int | float | complex) or cmath.isfinite(number):
            self._not_finite.clear()
            return
        if step not in self._not_finite:
            self._not_finite = [*self._not_finite[-1:], step]
        assert self._environment.job is not None
        if len(self._not_finite) > 1 and self._environment.job.demote_after_nan:
            raise LossNotFinite(tuple(self._not_finite), session.newest_version())

    def _begin(self) -> None:
        """The first step begins: a run that resumes must know what to put back."""
        if not self._has_tracked:
            raise StepOrder(
                "nothing is tracked: call ctx.track(model=..., optimizer=...) before the first step, "
                "or ctx.track() if there is no state to keep"
            )
        self._begun = True

    def _commit(self, step: int, *, last: bool) -> None:
        self._exact.check_committed()
        if self._session is not None:
            self._begin()
            assert self._environment.job is not None
            every = self._environment.job.snapshot_every
            due = None if every == 0 else (step + 1) % every == 0
            self._session.commit(step, due=due, last=last, sound=not self._not_finite)
            recorder.mark_step(step)
        self._next_step = step + 1


@overload
def resilient(function: Callable[Concatenate[Context, P], R]) -> Callable[P, R]: ...


@overload
def resilient() -> Callable[[Callable[Concatenate[Context, P], R]], Callable[P, R]]: ...


def resilient(function: Callable[Concatenate[Context, P], R] | None = None) -> Any:
    """Make a training function survive faults. It gets a `Context` first; the caller's arguments follow.

    Under `ftrain run` the function runs again after each fault, in a new process, or with ``--in-process`` in the same
    one: `Context.track` restores what it tracks and `Context.steps` goes on at the right step. Call it once.
    """
    if function is None:
        return resilient

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return _run(lambda context: function(context, *args, **kwargs))

    return call


def _run(function: Callable[[Context], R]) -> R:
    environment = read_environment()
    if environment.job is not None:
        return _run_protected(environment, environment.job, function)
    device = choose_device(environment)
    if environment.rank == 0:
        launcher = "torchrun" if environment.launched else "plain python"
        warnings.warn(
            f"started by {launcher}: nothing protects this training from faults; start it with `ftrain run`",
            NotProtected,
            stacklevel=3,
        )
    with process_group(environment, device):
        return function(Context(environment, device, None))


_ran = False


def _run_protected(environment: WorkerEnvironment, job: JobEnvironment, function: Callable[[Context], R]) -> R:
    global _ran
    if _ran:
        raise FtrainError("a process can run one resilient function, once: put all phases of training into it")
    _ran = True
    if rejoin.is_possible(job):
        return rejoin.run(environment, job, lambda place, member: _run_generation(place, function, member))
    if job.standby:
        raise FtrainError("this process is a standby, and can take no rank: the script has formed a process group")
    return _run_generation(environment, function, None)


def _run_generation(
    environment: WorkerEnvironment, function: Callable[[Context], R], member: rejoin.Member | None
) -> R:
    """Raises GenerationEnded if this process is to go on in the next one: only a ``member`` is."""
    job, device = environment.job, choose_device(environment)
    assert job is not None
    window = rejoin.Window() if member is None else member.window
    link = AgentLink(
        job.node_dir / "agent.sock", Hello(environment.rank, environment.local_rank, os.getpid(), job.generation)
    )
    link.connect()
    context: Context | None = None
    session: Session | None = None
    try:
        with outcome.orderly_termination(), window, process_group(environment, device):
            session = Session(environment, job, link, None if member is None else member.take_held())
            recorder.take_over_marks()
            context = Context(environment, device, session)
            try:
                result = function(context)
            finally:
                window.close()
                session.finish()
            link.send(Finished())
            session.close()
        return result
    except GenerationEnded:
        _leave(session, member)
        raise
    except SystemExit as stop:
        if outcome.exit_code_of(stop) == 0:
            link.send(Finished())
        raise
    except KeyboardInterrupt:
        raise SystemExit(outcome.INTERRUPTED) from None
    except ArenaFull as error:
        if not link.send(OutOfMemory(error.needed_bytes, error.available_bytes)):
            print(error, file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except Exception as error:  # whatever the training function raises is the agent's to judge
        failed = outcome.describe_failure(error, None if context is None else context._next_step)
        if not link.send(failed):
            print(failed.traceback, file=sys.stderr, flush=True)
        if outcome.await_fate(failed, None if member is None else member.wait_asked):
            _leave(session, member)
            raise GenerationEnded from None
        raise SystemExit(1) from None
    finally:
        link.close()


def _leave(session: Session | None, member: rejoin.Member | None) -> None:
    """What has been committed is sealed first: whoever forms the next generation asks what there is."""
    if session is not None:
        if member is not None:
            member.held = session.hold()
        session.close()


def _readable(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return f"{value:.9g}" if isinstance(value, float) else str(value)

"""A protected worker's session: everything between the training loop and the node's daemon and agent.

At start: the snapshot that this generation begins with is read back, object by object as they are tracked; the
arena is reserved and mapped. At each commit: the progress word; and when a snapshot is due, a slot, and a capture that
goes on in the background. Nothing on that path waits for daemon or agent: both may be away while they are restarted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch._C._distributed_c10d import PrefixStore

from ftrain.arena import Arena
from ftrain.cadence import Cadence
from ftrain.capture import Capturer, Content
from ftrain.comm import worker as recorder
from ftrain.ddp import BucketLayout, Buckets, find_ddps, replicated_parameters
from ftrain.environment import JobEnvironment, WorkerEnvironment
from ftrain.errors import ArenaFull, StateMismatch
from ftrain.gradients import live_gradients, load_gradients, watch_optimizer
from ftrain.group import connect_store
from ftrain.halt import Halt
from ftrain.link import AgentLink, Described, FirstStep, OutOfMemory, Restored, Undescribed, Unlike
from ftrain.live import Held
from ftrain.probe import foreseen_bytes
from ftrain.reading import read_refusal
from ftrain.replicas import ReplicaCheck
from ftrain.reshard.describer import Describer
from ftrain.restore import read_state
from ftrain.rng import rng_state, set_rng_state
from ftrain.sharded import is_same_everywhere, local_of
from ftrain.slots import SlotChooser
from ftrain.state import TensorKey, check_owners, load_state, tensor_key, unique_parameters
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.manifest import unit_bytes
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from ftrain.durable.reader import Checkpoint
    from ftrain.reshard.crossing import Crossing
    from ftrain.reshard.layouts import LayoutWatch
    from ftrain.reshard.storage import SnapshotReader

MEMORY_PATIENCE_SECONDS = 0.25
"""All commits together wait so long for memory where the job has a snapshot of another world to fall back to; then
they are skipped until it is there. Where it has none, as long as it takes."""
LAST_PATIENCE_SECONDS = 30.0
"""The last step's snapshot waits so long for the one before it; protecting takes a few seconds at most."""


class Session:
    """One generation of one protected rank. All methods are called by all ranks, in the same order."""

    def __init__(
        self, environment: WorkerEnvironment, job: JobEnvironment, link: AgentLink, held: Held | None = None
    ) -> None:
        """``held``: what this process still has of its former generation's state."""
        self._rank = environment.rank
        self._lane = environment.local_rank
        self._job = job
        self._link = link
        self._arena = Arena(job.node_dir, environment.local_rank)
        self._control = ControlPage(job.node_dir)
        store = PrefixStore(f"ftrain/slots/{job.generation}", connect_store(environment))
        gate = self._control if environment.rank == 0 else None
        self._slots = SlotChooser(store, gate, note_wait=recorder.note_wait, note_hold=recorder.note_hold)
        self._cadence = Cadence()
        self._halt = Halt(self._control, self._lane, link.send)
        self._environment, self._world_size = environment, environment.world_size
        self.describer = Describer(environment.rank, environment.world_size)
        """What the script says of its tensors (`Context.layout`) goes here, before anything is tracked."""
        self._capturer = Capturer(
            environment.rank, environment.world_size, self._replicated, environment.local_rank, self._arena.client,
            self.describer,
        )  # fmt: skip
        suits = held is not None and held.suits(job.restore, environment.rank, environment.world_size)
        self._held = held if suits else None
        self._read_bytes = self._kept_bytes = 0
        self._unit_bytes: int | None = None
        """Of the snapshot that was read back; None: there was none, or another world's, or it came from storage."""
        self._crossing: Crossing | None = None
        self._layouts: LayoutWatch | None = None
        self._checkpoint: Checkpoint | None = None
        self._replicas = ReplicaCheck(job.check_replicas, link.send)
        self._objects: dict[str, Any] = {}
        self._buckets: dict[int, Buckets] = {}
        self._restored: dict[str, Any] | None = None
        self._announced = self._begun = self._stepped = False
        self._is_described: bool | None = None
        """As it was told last."""
        self._wanted_bytes, self._is_short = 0, False
        self._patience_seconds = MEMORY_PATIENCE_SECONDS

    def track(self, objects: Mapping[str, Any]) -> None:
        """Add objects to the state; put back their part of the snapshot that this generation starts from."""
        self._objects.update(objects)
        for tracked in objects.values():
            if isinstance(tracked, torch.optim.Optimizer):
                watch_optimizer(tracked)
        if self._job.start is not None and not self._begun:
            self._restore(self._job.start, objects)
        self._capturer.track(self._objects)
        self._meet_ddps()
        if self._crossing is not None:
            self._crossing.certify(self._objects, self._link.send)
        self._announce()
        foreseen = foreseen_bytes(self._optimizers(), self._replicated_parameters(), self._world_size)
        self._wanted_bytes = self._tracked_bytes() + foreseen
        # Fresh memory costs more processor time than the first step of a world that another one captured, and that
        # world's snapshot is kept meanwhile: it may wait until that step is done.
        self._arena.reserve(self._wanted_bytes, late=self._job.origin is not None)

    def _tracked_bytes(self) -> int:
        """A snapshot of what is tracked now. What was read back is as large: to look through it all once more would
        only keep everybody waiting for the first step."""
        if self._unit_bytes is not None:
            return self._unit_bytes
        content, manifest = self._collect(-1)
        return unit_bytes(content.data_bytes, len(manifest))

    def rewind_generators(self) -> None:
        """Right before the first step: whatever the script drew since `track`, the generators start as captured."""
        if self._restored is not None and not self._begun:
            set_rng_state(self._restored["rng"])

    def begin(self) -> None:
        """All is tracked.

        Raises StateMismatch if the snapshot holds objects that the script does not track, LayoutInvalid for rules
        of the script's that do not hold.
        """
        if self._begun:
            return
        self._begun = True
        if self._job.origin is None and self._job.restore is None:  # better said now than after the first step
            self._arena.ready(None if self._job.start is None else 0.0)
        if self._job.start is not None:
            if self._restored is None:
                raise StateMismatch("there is a snapshot to resume from: call ctx.track before the first step")
            forgotten = sorted(set(self._restored["objects"]) - set(self._objects))
            if forgotten:
                raise StateMismatch(f"the snapshot holds {', '.join(forgotten)}, which the script has not tracked")
        self._meet_ddps()
        if self._job.start is None and (self._job.elastic or self.describer.rules is not None):
            self._watch_layouts()
        if self._crossing is not None:
            self._crossing.certify(self._objects, self._link.send, is_last=True)
        self._restored = self._crossing = self._checkpoint = None
        if self._job.start is not None and self.describer.inherited is not None:
            self._tell_if_described(self.describer.inherited, self._job.start)
        self._announce()

    def _watch_layouts(self) -> None:
        """What no other world could take over is better said now than when a node is lost."""
        from ftrain.reshard.layouts import LayoutWatch

        layouts = LayoutWatch(self.describer)
        self._layouts = layouts if layouts.begin(self._objects) else None
        if self.describer.refused is not None:
            self._capturer.forget()  # the first snapshot says so

    def _tell_if_described(self, reason: str | None, step: int) -> None:
        """Before there is the snapshot: who lost a node then might go on with fewer, and they could not read it."""
        if self._job.elastic and self._is_described is not (reason is None):
            told = self._link.send(Described(step) if reason is None else Undescribed(reason))
            self._is_described = reason is None if told else None

    def commit(self, step: int, *, due: bool | None, last: bool = False, sound: bool = True) -> None:
        """Step ``step`` is done: say so, and capture it if ``due``, unless this rank's state is not ``sound``.

        ``due`` None: rank 0 decides, by what snapshots cost. The ``last`` is due, and waits for its predecessor to be
        protected. So is the one after which the job is halted: then this does not return, unless the halt is given up.

        Raises NotTrackable, ArenaFull, PeerSilent.
        """
        self.begin()
        halts = self._halt.arrive(step)
        last = last or halts
        if self._layouts is not None:
            self._look_at_layouts(self._layouts)
        # A list: every reducer must be asked, since settling is a collective.
        settled = all([buckets.settle() for buckets in self._buckets.values()]) and self._capturer.is_settled()
        if last or due is not False:
            wanted = last or due or self._is_time()
            self._snapshot(step, settled, sound, wanted, last)
        self._control.set_progress(self._lane, step)
        if self._replicas.due(step):
            ddps = [buckets.ddp for buckets in self._buckets.values()]
            self._replicas.check(step, unique_parameters(self._objects), ddps, self._optimizers())
        if not self._stepped:
            self._stepped = True
            self._link.send(FirstStep(step, time.time()))
            self._arena.hurry()
        if halts:
            self._capturer.finish()
            newest = self._capturer.newest
            self._halt.stay(step, sealed=newest is not None and newest.version == step)

    def _look_at_layouts(self, layouts: LayoutWatch) -> None:
        """What the first steps have made of tensors that said nothing before."""
        if not layouts.after_step(self._objects):
            self._layouts = None
        if self.describer.refused is not None:
            self._capturer.forget()  # the next snapshot says so

    def newest_version(self) -> int | None:
        """The newest snapshot that this rank has sealed, or started from."""
        self._capturer.finish()
        return self._job.start if self._capturer.newest is None else self._capturer.newest.version

    def finish(self) -> None:
        """The function has ended, well or not: what was committed is sealed before anybody hears of it."""
        self._capturer.close()

    def hold(self) -> Held | None:
        """What of the state is as it was captured last, or was not looked at yet: for the next generation."""
        self._capturer.finish()
        return self._held or self._capturer.hold()

    def close(self) -> None:
        """Let go of memory and connections."""
        self._capturer.close()
        self._arena.close()
        self._control.close()

    def _is_time(self) -> bool:
        """Only rank 0's word counts: the others look for what it publishes."""
        return self._rank != 0 or self._cadence.due(time.monotonic(), idle=self._control.gate()[1] >= 0)

    def _snapshot(self, step: int, settled: bool, sound: bool, wanted: bool, last: bool) -> None:
        self._capturer.finish()
        patience = self._patience_seconds if self._job.origin is not None and not last else None
        if patience is not None and not self._stepped:
            patience = 0.0  # its memory is reserved after it
        possible = settled and sound and wanted and (self._rank != 0 or self._has_memory(patience))
        slot = self._slots.choose(step, possible=possible, patience_seconds=LAST_PATIENCE_SECONDS if last else 0.0)
        if slot is None:
            if self._rank == 0 and wanted:
                self._arena.client.skipped(step)
            return
        snapshot = SnapshotId(step, self._job.generation, slot)
        if not sound or not self._has_memory(patience):
            self._arena.client.skip(snapshot)  # rank 0 did not know
            return
        content, manifest = self._collect(step)
        self._tell_if_described(read_refusal(content.plan), step)
        self._wanted_bytes = size = unit_bytes(content.data_bytes, len(manifest))
        if not self._arena.fits(size):
            self._arena.grow(size)
            if not last or not self._has_memory(patience):  # of the last step there is no later snapshot
                self._arena.client.skip(snapshot)
                return
        self._capturer.begin(snapshot, content, manifest, self._arena.lane)
        if self._slots.capture(step, content.plan.digest):
            self._link.send(Unlike())

    def _has_memory(self, patience_seconds: float | None) -> bool:
        """Whether the lane is there, after waiting so long for it. Raises ArenaFull if there never was a snapshot.

        Fewer nodes need more memory each, and a state may outgrow what it has. Where there is not so much the job goes
        on all the same, from the snapshot that there is, which is kept; and asks again.
        """
        try:
            if self._arena.ready(0.0):
                return True
            recorder.note_hold()
            is_ready = self._arena.ready(patience_seconds)
            if patience_seconds:  # each step would wait as long, and the memory be there no sooner
                self._patience_seconds = 0.0
            return is_ready
        except ArenaFull as error:
            if self._job.origin is None and self._job.restore is None and self._capturer.newest is None:
                raise
            if not self._is_short:
                self._is_short = True
                self._link.send(OutOfMemory(error.needed_bytes, error.available_bytes, goes_on=True))
            if self._job.origin is None:
                self._arena.make_do()
            else:
                self._arena.reserve(self._wanted_bytes)
            return False

    def _collect(self, step: int) -> tuple[Content, bytes]:
        content = self._capturer.collect(
            lambda parameters: {
                "step": step,
                "gradients": live_gradients(parameters),
                "buckets": {key: msgspec.structs.asdict(b.layout()) for key, b in self._buckets.items()},
                "rng": rng_state(),
            }
        )
        return content, self._capturer.manifest(step, content)

    def _restore(self, step: int, objects: Mapping[str, Any]) -> None:
        crossing = self._cross()
        if crossing is not None:
            self._restored = crossing.restore(objects, self._objects)
            set_rng_state(self._restored["rng"])
            return
        if self._restored is None:
            self._restored = self._read(objects)
        check_owners(self._objects, self._restored["objects"])
        for name, tracked in objects.items():
            if name not in self._restored["objects"]:
                raise StateMismatch(f"{name} is tracked, but the snapshot of step {step} lacks it")
            load_state(name, tracked, self._restored["objects"][name], self._objects.values())
        load_gradients(unique_parameters(self._objects), self._restored["gradients"])
        set_rng_state(self._restored["rng"])

    def snapshot_reader(self) -> SnapshotReader | None:
        """See `Context.snapshot_reader`."""
        crossing = None if self._begun else self._cross()
        return None if crossing is None else crossing.reader()

    def _cross(self) -> Crossing | None:
        """How to start from what another world captured; None: this generation does not."""
        if self._job.origin is None and self._job.durable is None:
            return None
        if self._world_size > 1:
            self.describer.ddps = tuple(find_ddps(unique_parameters(self._objects)).values())
        if self._crossing is None and self._restored is None:
            from ftrain.reshard.crossing import Crossing, other_world  # they take DCP along, which few runs need

            old = other_world(self._environment, self._job, self._arena, self._stored(), self.describer, self._objects)
            self._crossing = None if old is None else Crossing(self._environment, old, self.describer)
        return self._crossing

    def _stored(self) -> Checkpoint | None:
        """The checkpoint that the job starts from, opened once; None: it starts from memory, or anew."""
        if self._checkpoint is None and self._job.origin is None and self._job.durable is not None:
            from ftrain.durable.reader import Checkpoint  # it takes DCP along, which few runs need

            self._checkpoint = Checkpoint(self._job.durable.path)
        return self._checkpoint

    def _read(self, objects: Mapping[str, Any]) -> dict[str, Any]:
        """The tree that this rank captured, from memory, or else from storage."""
        snapshot = self._job.restore
        if snapshot is None:
            from ftrain.durable.reader import read_state as read_stored  # it takes DCP along, which few runs need

            checkpoint = self._stored()
            assert checkpoint is not None
            stored = read_stored(checkpoint, self._rank, self._world_size)
            if self.describer.rules is None:  # which a script that is started anew may have got meanwhile
                self.describer.resume(stored.refusal)
            return stored.tree
        region = self._arena.wait_restored(self._job.generation, snapshot)
        held, self._held = self._held, None
        found = read_state(region, self._arena.lane.homes, snapshot, self._rank, self._world_size, objects, held)
        self._read_bytes, self._kept_bytes, self._unit_bytes = found.read_bytes, found.kept_bytes, found.unit_bytes
        self.describer.resume(found.refusal)
        return found.tree

    def _meet_ddps(self) -> None:
        """Find DDP objects that are new here; bring those of a resumed run to the layout of the snapshot."""
        if self._world_size == 1:
            return  # nothing is replicated, and nothing is reduced
        layouts = self._restored["buckets"] if self._restored is not None else {}
        for key, ddp in find_ddps(unique_parameters(self._objects)).items():
            if key in self._buckets and self._buckets[key].ddp is ddp:
                continue
            buckets = self._buckets[key] = Buckets(ddp)
            self._capturer.forget()  # what is replicated has changed
            layout = layouts.get(buckets.parameters if self._crossing is not None else key)
            if layout is not None:
                buckets.replay(BucketLayout(**layout))
        self.describer.ddps = tuple(buckets.ddp for buckets in self._buckets.values())

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [tracked for tracked in self._objects.values() if isinstance(tracked, torch.optim.Optimizer)]

    def _replicated_parameters(self) -> set[torch.nn.Parameter]:
        found = {parameter for buckets in self._buckets.values() for parameter in replicated_parameters(buckets.ddp)}
        return found | {p for p in unique_parameters(self._objects) if is_same_everywhere(p, self._world_size)}

    def _replicated(self) -> set[TensorKey]:
        """Tensors that all ranks hold the same: what DDP owns, what DTensor replicates everywhere, and the state that
        optimizers keep for both.

        An assumption, and not checked: gradients are equal, so equal optimizers stay equal.
        """
        parameters = self._replicated_parameters()
        keys = {tensor_key(local_of(parameter)) for parameter in parameters}
        for optimizer in self._optimizers():
            for parameter in parameters & optimizer.state.keys():
                for value in optimizer.state[parameter].values():
                    if isinstance(value, torch.Tensor) and (value.shape == parameter.shape or value.numel() == 1):
                        keys.add(tensor_key(local_of(value)))
        return keys

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._link.send(Restored(self._job.start, time.time(), self._read_bytes, self._kept_bytes))

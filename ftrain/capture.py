"""A rank's state into its lane: what is captured, the plan that is kept from step to step, and the captures' order.

`collect` reads the state: the tracked objects' (sources.py), as a tree of packed values whose tensors are indices of
a plan (plan.py), and what is gathered anew each time. `begin` then copies what must be copied at once and leaves the
rest to a background thread (flight.py), until `wait_copied` (before an optimizer's step) or `finish` (before the
next capture, and at the end). The captures that were sealed are remembered by slot: the newest of them is the
reference for the next, as long as the plan is the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import xxhash
from torch import Tensor, nn

from ftrain.copier import Pins
from ftrain.encoding import DICT, Packer
from ftrain.flight import Crew, Flight, Kit, Line
from ftrain.layout import Kind, Layout, lay_out
from ftrain.live import Held, hold
from ftrain.looks import Numbers, Tensors
from ftrain.marks import Mark, Steps
from ftrain.plan import Owned, Plan, Row, owned_by, rows_of
from ftrain.reshard.describer import Describer
from ftrain.samples import Samples
from ftrain.sources import Source, source_of
from ftrain.state import TensorKey, refuse_special, tensor_key, unique_parameters
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import NO_SNAPSHOT, Header, State, checksum
from ftrain_snapshot.words import SnapshotId

FORMAT = 4
"""Version of the manifest's format."""
TRIAL_CAPTURES = 3
"""A large buffer that so many captures in a row find equal is taken for one that its marks tell the truth of."""
_NO_TAIL = msgspec.msgpack.encode(Layout((), 1))
NAMED_MAX = 8
"""So many tensors are named in a warning."""


class SnapshotDropped(UserWarning):
    """A snapshot was given up, for something changed tensors in a way that torch does not count."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a unit's bytes mean."""

    format: int
    rank: int
    version: int
    layout: msgspec.Raw
    """The plan's `Layout`; encoded once per plan."""
    tail: msgspec.Raw
    """That of the tensors behind it; in the tree they are -1, -2, and so on."""
    logical: msgspec.Raw
    """What the plan's tensors are, whatever the world (`ftrain.reshard.describer.Logical`); encoded once per plan."""
    tree: Any
    """Python values and indices of tensors, packed by `ftrain.encoding`."""


@dataclass
class Content:
    """What a capture will hold."""

    plan: Plan
    versions: Numbers
    """Of the plan's tensors."""
    data_bytes: int
    tree: Any = None
    tail: list[Tensor] = field(default_factory=list)
    tail_rows: list[list[Row]] = field(default_factory=list)
    tail_layout: bytes = _NO_TAIL


@dataclass
class _Reference:
    snapshot: SnapshotId
    plan: Plan
    mark: Mark


class Capturer:
    """Captures one rank's state. ``replicated`` tells which tensors all ranks hold the same."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        replicated: Callable[[], set[TensorKey]],
        lane: int,
        line: Line | None,
        describer: Describer | None = None,
    ) -> None:
        self._rank, self._world_size, self._lane = rank, world_size, lane
        self._replicated, self._line = replicated, line
        self._describer = describer or Describer(rank, world_size)
        self._sources: list[Source] = []
        self._plan: Plan | None = None
        self._parameters = Tensors(())
        self._distrusted: set[str] = set()
        self._references: dict[int, _Reference] = {}
        self._steps = Steps(self.wait_copied)
        self._crew = Crew()
        self._pins = Pins()
        self._flight: Flight | None = None
        self.newest: SnapshotId | None = None
        """The last one that was sealed."""
        self.dropped = 0
        """How many captures the guard has given up."""

    # What is captured.

    def track(self, objects: Mapping[str, Any]) -> None:
        """From now on these are the state."""
        self.finish()
        known = {source.name: source for source in self._sources}
        self._sources = [known.get(name) or source_of(name, tracked) for name, tracked in objects.items()]
        self.forget()

    def forget(self) -> None:
        """Make a new plan for the next capture: what is replicated has changed."""
        self.finish()
        self._plan = None

    def is_settled(self) -> bool:
        """Whether the tracked objects can be captured now: FSDP2 may be half way through accumulating gradients."""
        return all(source.is_settled() for source in self._sources)

    def collect(self, rest: Callable[[Tensors], Mapping[str, Any]]) -> Content:
        """Read the state: that of the tracked objects, and beside it what ``rest`` returns. Raises NotTrackable.

        ``rest`` is given all parameters of the tracked objects, each once, in an order that is the same on all ranks.
        """
        plan, versions = self._settle()
        content = Content(plan, versions, plan.data_bytes)
        found: dict[TensorKey, int] = {}
        names: list[str] = []

        def index_of(tensor: Tensor, path: Callable[[], str]) -> int:
            refuse_special(tensor, path)
            key = tensor_key(tensor)
            index = plan.index_of.get(key, found.get(key))
            if index is None:
                content.tail.append(tensor)
                names.append(path())
                index = found[key] = -len(content.tail)
            return index

        content.tree = self._pack(Packer(index_of), rest(self._parameters))
        if content.tail:
            self._lay_out_tail(content, names)
        if any(source.asks() for source in self._sources):
            content.versions = plan.versions()
        return content

    def _lay_out_tail(self, content: Content, names: list[str]) -> None:
        layout = lay_out(content.tail, names, [Kind()] * len(names), 1)
        content.tail_layout = msgspec.msgpack.encode(layout)
        base = content.data_bytes
        content.tail_rows = [[] for _ in content.tail]
        for piece in layout.region_pieces(0):
            rows = rows_of(piece.index, piece.start, base + piece.region_offset, piece.end - piece.start)
            content.tail_rows[piece.index] += rows
        content.data_bytes += layout.region_bytes(0)

    def manifest(self, version: int, content: Content) -> bytes:
        """What goes behind the data."""
        plan = content.plan
        layout, tail, logical = map(msgspec.Raw, (plan.encoded_layout, content.tail_layout, plan.logical))
        return msgspec.msgpack.encode(Manifest(FORMAT, self._rank, version, layout, tail, logical, content.tree))

    def _pack(self, packer: Packer, rest: Mapping[str, Any]) -> Any:
        return [*packer.pack(dict(rest)), "objects", _pack_objects(packer, self._sources)]

    def _settle(self) -> tuple[Plan, Numbers]:
        """The plan (the last one, if nothing has moved) and what torch has counted of its tensors."""
        plan, versions = self._plan, None
        if plan is not None and all([source.is_same() for source in self._sources]):
            versions = plan.look()
        if plan is None or versions is None:
            plan = self._make_plan()
            versions = plan.versions()
        return plan, versions

    def _make_plan(self) -> Plan:
        self.finish()
        for source in self._sources:
            source.read()
        objects = {source.name: source.tracked for source in self._sources}
        self._parameters = Tensors(unique_parameters(objects))
        owned = owned_by(self._sources)
        used: dict[TensorKey, Owned] = {}

        def note(tensor: Tensor, path: Callable[[], str]) -> int:
            refuse_special(tensor, path)
            key = tensor_key(tensor)
            if key in owned:
                used.setdefault(key, owned[key])
            return 0

        given = _given_by_modules(self._sources)
        for source in self._sources:
            source.adopt(given)
        self._pack(Packer(note), {})
        for source in self._sources:
            source.forget()
        shared = self._replicated() if self._world_size > 1 else set()
        others = chain.from_iterable(source.own for source in self._sources)
        plan = self._plan = Plan(list(used.values()), others, shared, self._rank, self._world_size)
        plan.distrust(index for index, name in enumerate(plan.names) if name in self._distrusted)
        plan.logical = self._describer.record(objects, plan)
        self._kit = Kit(plan, self._pins)
        self._references.clear()
        return plan

    # Capturing it.

    def begin(self, snapshot: SnapshotId, content: Content, manifest: bytes, lane: Lane) -> None:
        """Capture into the slot; returns when the caller may go on training. `finish` first."""
        assert self._flight is None
        assert self._line is not None
        plan = content.plan
        self._references.pop(snapshot.slot, None)
        mark = self._kit.marks.read(content.versions, self._steps.take())
        self._try_buffers(plan)
        reference = self._newest_reference(lane)
        changed = self._kit.marks.changed(mark, reference.mark if reference is not None else None)
        header = Header(
            snapshot, self._rank, self._world_size, content.data_bytes, len(manifest), plan.digest,
            checksum(manifest), reference.snapshot if reference is not None else NO_SNAPSHOT,
        )  # fmt: skip
        region = lane.regions[reference.snapshot.slot] if reference is not None else None
        flight = Flight(self._kit, mark, changed, lane, header, region, self._line)
        flight.depart(list(zip(content.tail, content.tail_rows, strict=True)), manifest)
        self._crew.take(flight)  # first: what has been taken is sealed, even if a signal ends the generation here
        self._flight = flight

    def wait_copied(self) -> None:
        """Return when what optimizers own may be changed."""
        flight = self._flight
        if flight is not None:
            flight.wait_copied()

    def finish(self) -> None:
        """Return when the last capture is sealed, or dropped: then a warning says why."""
        flight = self._flight
        if flight is None:
            return
        flight.wait_over()
        self._flight = None
        if flight.sealed:
            self.newest = flight.header.snapshot
            self._references[flight.header.snapshot.slot] = _Reference(flight.header.snapshot, flight.plan, flight.mark)
        else:
            self.dropped += 1
            self._explain(flight)

    def hold(self) -> Held | None:
        """What is trained, is in main memory, and by its marks is as the last sealed capture has it. `finish` first."""
        reference = max(self._references.values(), key=lambda r: r.snapshot.version, default=None)
        plan = self._plan
        versions = plan.look() if plan is not None and reference is not None and reference.plan is plan else None
        if plan is None or reference is None or versions is None:
            return None
        changed = self._kit.marks.changed(self._kit.marks.read(versions, self._steps.take()), reference.mark)
        specs = plan.layout.specs
        tensors = {
            index: plan.tensors[index]
            for index in np.flatnonzero(~changed).tolist()
            # What is not trained had no gradients, in whose place the next model could be made beside it.
            if specs[index].kind.volatile and len(plan.views[index])
        }
        if not tensors:
            return None
        held = hold(tensors, specs)
        return Held(reference.snapshot, self._rank, self._world_size, plan.encoded_layout, held)

    def close(self) -> None:
        """Finish, and let go of thread, hooks and pinned memory."""
        self.finish()
        self._steps.close()
        self._crew.close()
        self._pins.close()

    def _newest_reference(self, lane: Lane) -> _Reference | None:
        newest = max(self._references.values(), key=lambda r: r.snapshot.version, default=None)
        if newest is None:
            return None
        state, header = lane.regions[newest.snapshot.slot].header()
        whole = state is State.SEALED and header is not None and header.snapshot == newest.snapshot
        return newest if whole else None

    def _try_buffers(self, plan: Plan) -> None:
        """Large buffers are copied each time until they have shown that they stay as they are."""
        for index, (equal, last) in list(plan.on_trial.items()):
            now = xxhash.xxh3_64_intdigest(plan.views[index])
            plan.on_trial[index] = (equal + 1 if now == last else 0, now)
            if last is not None and now != last:
                del plan.on_trial[index]
            elif plan.on_trial[index][0] == TRIAL_CAPTURES:
                del plan.on_trial[index]
                plan.fickle[index] = False

    def _explain(self, flight: Flight) -> None:
        version, plan = flight.header.snapshot.version, flight.plan
        if flight.error is not None:
            text = f"could not be captured: {flight.error!r}"
        elif flight.caught:
            names = sorted(plan.names[index] for index in flight.caught)
            more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
            text = (
                f"was dropped: {', '.join(names[:NAMED_MAX])}{more} changed outside of an optimizer's step in a way "
                "that torch does not count, or while being copied; copied before each commit returns from now on"
            )
            plan.distrust(flight.caught)
            self._distrusted.update(names)
            flight.kit.samples = Samples(plan)
        else:
            self._references.clear()
            text = "was dropped: memory of an earlier one is damaged; the next is captured whole"
        warnings.warn(f"the snapshot of step {version} {text}", SnapshotDropped, stacklevel=4)


def _pack_objects(packer: Packer, sources: Iterable[Source]) -> list[Any]:
    objects: list[Any] = [DICT]
    with packer.inside("objects"):
        for source in sources:
            with packer.inside(source.name):
                objects += (source.name, source.pack(packer))
    return objects


def _given_by_modules(sources: Iterable[Source]) -> set[TensorKey]:
    """The tensors that modules give with their state, and so put back in place. What else gives a tensor may have
    another one when it has loaded."""
    given: set[TensorKey] = set()

    def note(tensor: Tensor, path: Callable[[], str]) -> int:
        refuse_special(tensor, path)
        given.add(tensor_key(tensor))
        return 0

    modules = [source for source in sources if isinstance(source.tracked, nn.Module)]
    _pack_objects(Packer(note), modules)
    for source in modules:
        source.forget()
    return given

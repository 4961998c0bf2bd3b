"""The recorder without a compiler: each new process group is a Python one that notes what goes through it.

torch calls a group's methods, from Python (`torch.distributed`) and from C++ (DDP's reducer, functional collectives),
and a subclass's overrides are found by both. So the class that torch makes groups of is replaced by one that keeps a
plain group inside, notes the entry, asks the plain group, and sees to it that the exit is noted: by the future of the
work, or by the end of wait() where there is none (gloo's send, receive, reduce_scatter). Whatever it cannot note goes
through as if it were not there. It costs tens of microseconds for each operation, and exits are noted when the
interpreter is free to. Not recorded: tensors on accelerators (their futures end too early), groups split off in C++.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import ProcessGroup, Store, Work

from ftrain.comm.ring import PYTHON, Identity
from ftrain.comm.writer import Call, Entered, RingWriter


@dataclass(frozen=True)
class _Method:
    """A method of process groups."""

    op: int
    """A `ftrain_launcher.detect.records.Op`."""
    payload: int | None
    """Which argument holds this rank's own part."""
    sends: bool | None = None
    """It is a send or a receive; None: a collective."""
    rooted: bool = False
    ends_with_call: bool = False


_METHODS = {
    "allreduce": _Method(1, 0),
    "allreduce_coalesced": _Method(2, 0),
    "broadcast": _Method(3, 0, rooted=True),
    "reduce": _Method(4, 0, rooted=True),
    "allgather": _Method(5, 1),
    "_allgather_base": _Method(6, 1),
    "all_gather_single": _Method(6, 1),
    "allgather_coalesced": _Method(7, 1),
    "allgather_into_tensor_coalesced": _Method(8, 1),
    "all_gather_single_coalesced": _Method(8, 1),
    "gather": _Method(9, 1, rooted=True),
    "scatter": _Method(10, 0, rooted=True),
    "reduce_scatter": _Method(11, 0),
    "_reduce_scatter_base": _Method(12, 0),
    "reduce_scatter_single": _Method(12, 0),
    "reduce_scatter_tensor_coalesced": _Method(13, 0),
    "reduce_scatter_single_coalesced": _Method(13, 0),
    "alltoall_base": _Method(14, 1),
    "all_to_all_single": _Method(14, 1),
    "alltoall": _Method(15, 1),
    "barrier": _Method(16, None),
    "monitored_barrier": _Method(17, None, ends_with_call=True),
    "send": _Method(18, 0, sends=True),
    "recv": _Method(19, 0, sends=False),
    "recv_anysource": _Method(20, 0, sends=False),
}
_ANY_SOURCE = 20
_DTYPES = {
    **{getattr(torch, name): number for number, name in enumerate(("uint8", "int8", "int16", "int32", "int64"))},
    **{getattr(torch, name): number for number, name in enumerate(("float16", "float32", "float64"), 5)},
    **{torch.complex32: 8, torch.complex64: 9, torch.complex128: 10, torch.bool: 11, torch.bfloat16: 15},
}
"""torch's numbers; 65535 for the others."""
_writer: RingWriter | None = None
"""None: nothing is recorded, as in a process forked from a worker."""


def install(path: Path, identity: Identity) -> RingWriter:
    """Record the groups that are made from now on into a fresh ring. Raises OSError if there is no room for it."""
    global _writer
    again = distributed_c10d.ProcessGroup is RecordedGroup
    _writer = RingWriter(path, identity._replace(kind=PYTHON))
    if again:  # in another generation of the same process
        return _writer
    os.register_at_fork(after_in_child=_stop)
    distributed_c10d.ProcessGroup = RecordedGroup  # type: ignore[misc]
    return _writer


def _stop() -> None:
    global _writer
    _writer = None


class RecordedGroup(ProcessGroup):
    """A process group whose operations are noted. Those that are not overridden go to the same backends."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]  # what Python subclasses have
        self._inner = ProcessGroup(store, rank, size)
        self._on_cpu_only = True
        self._number: int | None = None
        """The ring's, once it has been used."""
        self._members: tuple[int, ...] | None = None

    def _set_default_backend(self, backend_type: ProcessGroup.BackendType) -> None:
        super()._set_default_backend(backend_type)
        self._inner._set_default_backend(backend_type)

    def _register_backend(self, device: torch.device, backend_type: ProcessGroup.BackendType, backend: Any) -> None:
        super()._register_backend(device, backend_type, backend)
        self._inner._register_backend(device, backend_type, backend)
        self._on_cpu_only = self._on_cpu_only and backend_type == ProcessGroup.BackendType.GLOO

    def _set_group_name(self, name: Any) -> None:
        super()._set_group_name(name)
        self._inner._set_group_name(name)

    def _set_group_desc(self, description: str) -> None:
        super()._set_group_desc(description)
        self._inner._set_group_desc(description)

    def get_group_store(self) -> Store:
        """The plain group's."""
        return self._inner.get_group_store()

    def _note_entry(self, method: _Method, args: Sequence[Any], kwargs: dict[str, Any]) -> Entered | None:
        """None: it cannot be noted."""
        try:
            tensors = [] if method.payload is None else _tensors(args[method.payload : method.payload + 1])
            on_cpu = all(tensor.device.type == "cpu" for tensor in tensors) if tensors else self._on_cpu_only
            if _writer is None or not on_cpu:
                return None
            number = self._communicator(_writer)
            call = Call(
                communicator=number,
                op=method.op,
                bytes=sum(tensor.nbytes for tensor in tensors),
                elements=sum(tensor.numel() for tensor in tensors),
                dtype=_DTYPES.get(tensors[0].dtype, 65535) if tensors else 65535,
                root=self._global(_root(method, args, kwargs)),
                tag=args[2] if method.sends is not None and len(args) > 2 else 0,
                sends=method.sends,
            )
            return _writer.enter(call)
        except Exception:  # the user's operation must go on, whatever was wrong with ours
            return None

    def _communicator(self, writer: RingWriter) -> int:
        if self._number is None:
            ranks = distributed_c10d._world.pg_group_ranks.get(self)
            self._members = None if ranks is None else tuple(sorted(ranks, key=ranks.__getitem__))
            self._number = writer.add_communicator(self.group_name, self._members, self.group_desc)
        return self._number

    def _global(self, rank: int) -> int:
        return self._members[rank] if self._members is not None and 0 <= rank < len(self._members) else -1


def _recorded(name: str, method: _Method) -> Callable[..., Any]:
    plain = getattr(ProcessGroup, name)

    def operation(self: RecordedGroup, *args: Any, **kwargs: Any) -> Any:
        entered = self._note_entry(method, args, kwargs)
        if entered is None:
            return plain(self._inner, *args, **kwargs)
        assert _writer is not None
        try:
            work = plain(self._inner, *args, **kwargs)
        except BaseException:
            _writer.leave(entered, failed=True)
            raise
        if method.ends_with_call or work is None:
            _writer.leave(entered)
            return work
        return _followed(_writer, work, entered, direct=method.sends is not None)

    operation.__name__ = name
    return operation


for _name, _method in _METHODS.items():
    if hasattr(ProcessGroup, _name):
        setattr(RecordedGroup, _name, _recorded(_name, _method))


def _followed(writer: RingWriter, work: Work, entered: Entered, *, direct: bool) -> Work:
    """See to it that the end of a work is noted; returns the work to hand out."""
    if not direct:
        try:
            work.get_future().add_done_callback(lambda future: writer.leave(entered, failed=_has_failed(future)))
            return work
        except RuntimeError:  # not implemented, says gloo's reduce_scatter
            pass
    writer.returned(entered)
    return RecordedWork(writer, work, entered)


def _has_failed(future: torch.futures.Future[Any]) -> bool:
    try:
        future.value()
        return False
    except Exception:  # whatever its operation has raised
        return True


class RecordedWork(Work):
    """A work without a future: its end is that of wait(), or when it is found completed."""

    def __init__(self, writer: RingWriter, work: Work, entered: Entered) -> None:
        super().__init__()
        self._writer, self._work, self._entered = writer, work, entered
        self._left = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the operation. Raises what it raises."""
        if not self._left:
            self._writer.wait_begins(self._entered)
        try:
            done = self._work.wait() if timeout is None else self._work.wait(timeout)
        except BaseException:
            self._leave(failed=True)
            raise
        self._leave()
        return done

    def is_completed(self) -> bool:
        """Whether the operation is over."""
        completed = self._work.is_completed()
        if completed:
            self._leave()
        return completed

    def _leave(self, *, failed: bool = False) -> None:
        if not self._left:
            self._left = True
            self._writer.leave(self._entered, failed=failed)

    def get_future(self) -> torch.futures.Future[Any]:
        """The plain work's, if it has one."""
        return self._work.get_future()

    def is_success(self) -> bool:
        """Whether it has not raised."""
        return self._work.is_success()

    def exception(self) -> Any:
        """What it has raised."""
        return self._work.exception()

    def result(self) -> list[torch.Tensor]:
        """Its tensors."""
        return self._work.result()

    def source_rank(self) -> int:
        """Where a receive from anybody got its tensor from."""
        return self._work.source_rank()

    _source_rank = source_rank

    def synchronize(self) -> None:
        """Let the current stream wait for it."""
        self._work.synchronize()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def _root(method: _Method, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """The rank within the group of the root or peer; -1: none."""
    if method.sends is not None:
        return -1 if method.op == _ANY_SOURCE or len(args) < 2 else int(args[1])
    if not method.rooted:
        return -1
    for value in (*args[1:], *kwargs.values()):
        root = getattr(value, "rootRank", value)
        if isinstance(root, int):
            return root
    return -1

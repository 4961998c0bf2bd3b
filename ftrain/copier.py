"""Bytes from tensors into a home of the arena: by ``memmove`` in main memory, by a stream of its own from a GPU.

In main memory plain ``memmove`` measures as torch's ``copy_`` does, takes addresses instead of views that would have
to be made and kept for each home, and lets other threads run meanwhile. Small pieces are moved without letting go
of the interpreter: that would cost more than the move.

From a GPU, copies are queued on a side stream that begins behind what the training stream has been given so far.
The training stream is made to wait for them on the device, never the host: at commit for the eager ones, before the
next step for the lazy ones. The homes are registered as pinned memory, once for all plans (`Pins`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ftrain.layout import flat_bytes, materialized_bytes
from ftrain.marks import Mark
from ftrain.plan import Flags, Plan, Row
from ftrain_snapshot.arena import Mapping

SMALL_BYTES = 4096

_MOVE = [ctypes.CDLL(None).memmove, ctypes.PyDLL(None).memmove]
for _move in _MOVE:
    _move.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    _move.restype = None
_MOVE_LONG, _MOVE_SHORT = _MOVE


def address_of(mapping: Mapping) -> int:
    """Where a mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping.view))


def move(target: int, source: int, length: int) -> None:
    """``length`` bytes from one address to another."""
    (_MOVE_SHORT if length < SMALL_BYTES else _MOVE_LONG)(target, source, length)


class Copier:
    """Copies the pieces of a plan whose state is in main memory."""

    is_queued = False
    """Copies are queued on a device, and take place later."""

    def begin(self, homes: list[Mapping]) -> None:
        """A capture begins, into these homes."""
        self.homes = [address_of(home) for home in homes]
        self._whole: tuple[Tensor, Tensor] | None = None

    def copy(self, plan: Plan, rows: Iterable[Row], home: int) -> None:
        """Copy pieces of tensors to their places in a home."""
        base = self.homes[home]
        for row in rows:
            if plan.flats[row.tensor] is None:
                self.put(self._materialized(plan.tensors[row.tensor])[row.start :], row, base)
            else:
                move(base + row.offset, plan.addresses[row.tensor] + row.start, row.length)

    def copy_tail(self, tensor: Tensor, row: Row, home: int) -> None:
        """The same for a tensor that is in no plan."""
        flat = flat_bytes(tensor)
        self.put((self._materialized(tensor) if flat is None else flat)[row.start :], row, self.homes[home])

    def _materialized(self, tensor: Tensor) -> Tensor:
        """Once for all pieces of a tensor, which are copied one after the other."""
        if self._whole is None or self._whole[0] is not tensor:
            self._whole = tensor, materialized_bytes(tensor)
        return self._whole[1]

    def put(self, source: Tensor, row: Row, base: int) -> None:
        """Copy from any flat tensor of bytes."""
        move(base + row.offset, source.data_ptr(), row.length)

    def unsure(self, plan: Plan, mark: Mark, changed: Flags) -> Flags:
        """The tensors that are to be copied though their marks say that they have not changed.

        Called right after `begin`: nobody can check them afterwards.
        """
        return np.zeros_like(changed)

    def strayed(self) -> set[int]:
        """Tensors that were not copied, and have changed all the same; asked when all else is done."""
        return set()

    def end_eager(self) -> None:
        """What has been copied so far may be changed by the caller from here on."""
        self._whole = None

    def queued(self) -> Any:
        """A token for all copies so far, for `wait`."""

    def wait(self, token: Any) -> None:
        """Wait until the copies that the token stands for are there."""

    def order_training(self) -> None:
        """What the training thread does from here on comes after all copies so far."""


class Pins:
    """Homes that are registered as pinned memory; for as long as they are, they stay mapped.

    A range may be registered once: CUDA remembers a second time as an error, and torch raises it at its next kernel.
    """

    def __init__(self) -> None:
        self._homes: dict[int, Mapping] = {}

    def pin(self, homes: Iterable[Mapping], device: torch.device) -> None:
        """Register these, and let go of all others: a home that has grown is another one."""
        wanted = {address_of(home): home for home in homes}
        for address in self._homes.keys() - wanted.keys():
            self._release(address)
        with torch.cuda.device(device):
            for address in wanted.keys() - self._homes.keys():
                # Without it copies still work, only slower: pageable memory.
                _cudart().cudaHostRegister(address, wanted[address].size, 0)
                self._homes[address] = wanted[address]

    def close(self) -> None:
        """Let go of all."""
        for address in list(self._homes):
            self._release(address)

    def _release(self, address: int) -> None:
        _cudart().cudaHostUnregister(address)
        del self._homes[address]


class DeviceCopier(Copier):
    """The same for a plan with tensors on a GPU. Written to the letter of CUDA's rules; no test of ours has a GPU."""

    is_queued = True

    def __init__(self, device: torch.device, pins: Pins) -> None:
        self._device, self._pins = device, pins
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last: torch.cuda.Event | None = None
        self._plan: Plan | None = None
        self._hashes: dict[int, tuple[int, int, Tensor]] = {}
        self._differing: dict[int, Tensor] = {}

    def begin(self, homes: list[Mapping]) -> None:
        """Pin the homes, and begin behind what training has queued."""
        super().begin(homes)
        self._pins.pin(homes, self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._last = None

    def copy(self, plan: Plan, rows: Iterable[Row], home: int) -> None:
        """See `Copier`."""
        base = self.homes[home]
        with torch.cuda.stream(self._stream):
            for row in rows:
                flat = plan.flats[row.tensor]
                flat = self._materialized(plan.tensors[row.tensor]) if flat is None else flat
                self.put(flat[row.start :], row, base)

    def copy_tail(self, tensor: Tensor, row: Row, home: int) -> None:
        """See `Copier`."""
        with torch.cuda.stream(self._stream):
            super().copy_tail(tensor, row, home)

    def put(self, source: Tensor, row: Row, base: int) -> None:
        """See `Copier`."""
        if not source.is_cuda:
            super().put(source, row, base)
            return
        place = (ctypes.c_char * row.length).from_address(base + row.offset)
        target = torch.frombuffer(place, dtype=torch.uint8)
        target.copy_(source[: row.length], non_blocking=True)
        source.record_stream(self._stream)

    def unsure(self, plan: Plan, mark: Mark, changed: Flags) -> Flags:
        """See `Copier`."""
        # The device hashes what lies among the stable tensors, and so tells whether a mark has missed a change. What
        # is volatile and unchanged for once is copied: cheaper than to hash it at each capture.
        if self._plan is not plan:
            self._plan, self._hashes = plan, {}
        self._differing = {}
        unsure = np.zeros_like(changed)
        with torch.cuda.stream(self._stream):
            for index, tensor in enumerate(plan.tensors):
                if not tensor.is_cuda:
                    continue
                now = None if plan.layout.specs[index].kind.volatile else _hash(tensor)
                version, stamp = int(mark.versions[index]), int(mark.stamps[index])
                known = self._hashes.get(index)
                if now is None or known is None or known[:2] != (version, stamp):
                    unsure[index] = True
                elif not changed[index]:
                    self._differing[index] = now != known[2]
                if now is not None:
                    self._hashes[index] = (version, stamp, now)
        return unsure

    def strayed(self) -> set[int]:
        """See `Copier`."""
        with torch.cuda.stream(self._stream):
            return {index for index, differs in self._differing.items() if differs.item()}

    def end_eager(self) -> None:
        """See `Copier`."""
        super().end_eager()
        torch.cuda.current_stream(self._device).wait_event(self.queued())

    def queued(self) -> torch.cuda.Event:
        """See `Copier`."""
        self._last = self._stream.record_event()
        return self._last

    def wait(self, token: torch.cuda.Event) -> None:
        """See `Copier`."""
        token.synchronize()

    def order_training(self) -> None:
        """See `Copier`."""
        if self._last is not None:
            torch.cuda.current_stream(self._device).wait_event(self._last)


def _hash(tensor: Tensor) -> Tensor | None:
    """A number on the device that tells two contents apart; None where this torch or this dtype has none."""
    hash_tensor = getattr(torch, "hash_tensor", None)
    try:
        return None if hash_tensor is None else cast(Tensor, hash_tensor(tensor.detach()))
    except (RuntimeError, NotImplementedError):
        return None


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def copier_for(device: torch.device, pins: Pins) -> Copier:
    """The copier for state on ``device``."""
    return DeviceCopier(device, pins) if device.type == "cuda" else Copier()

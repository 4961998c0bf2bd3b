"""The way back: from the regions of all ranks to each rank's state, for the world size that captured it.

Each rank reads its own region: its range of the replicated space and its private tensors. The ranges are exchanged
over the process group in bounded pieces, straight into new tensors, never views of the arena: ``load_state_dict``
of optimizers keeps the tensors it is given, and training would write into the snapshot (FACTS 7).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from ftrain.capture import FORMAT, Manifest
from ftrain.encoding import unpack
from ftrain.errors import StateMismatch
from ftrain.layout import Layout, Piece

PIECE_BYTES = 32 << 20
"""Most bytes of one broadcast."""


def read_state(data: memoryview, manifest: bytes, rank: int, world_size: int) -> dict[str, Any]:
    """The tree that was captured, with tensors of its own. A collective if ``world_size`` is above one.

    Raises StateMismatch if the snapshot is of another format, rank or world size.
    """
    try:
        content = msgspec.msgpack.decode(manifest, type=Manifest)
        layout = msgspec.msgpack.decode(content.layout, type=Layout)
    except msgspec.DecodeError as error:
        raise StateMismatch(f"the snapshot's manifest cannot be read: {error}") from error
    if (content.format, content.rank, layout.world_size) != (FORMAT, rank, world_size):
        raise StateMismatch(
            f"the snapshot in this region is of rank {content.rank} of {layout.world_size} (format {content.format}), "
            f"this is rank {rank} of {world_size} (format {FORMAT})"
        )
    region = torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)
    tensors = [spec.empty() for spec in layout.specs]
    flat = [_flat(tensor) for tensor in tensors]
    _scatter(layout.private_pieces(rank), region, flat)
    _exchange(layout, rank, region, flat)
    placed = [tensor.to(spec.device) for tensor, spec in zip(tensors, layout.specs, strict=True)]
    state: dict[str, Any] = unpack(content.tree, placed)
    return state


def _exchange(layout: Layout, rank: int, region: torch.Tensor, flat: list[torch.Tensor]) -> None:
    if layout.world_size == 1:
        _scatter(layout.replicated_pieces(0, layout.replicated_bytes), region, flat)
        return
    device = _exchange_device()
    scratch = torch.empty(min(PIECE_BYTES, layout.replicated_bytes), dtype=torch.uint8, device=device)
    for root in range(layout.world_size):
        start, end = layout.share(root)
        for low in range(start, end, PIECE_BYTES):
            high = min(end, low + PIECE_BYTES)
            piece = scratch[: high - low]
            if root == rank:
                piece.copy_(region[low - start : high - start])
            dist.broadcast(piece, src=root)
            _scatter(layout.replicated_pieces(low, high), piece, flat)


def _scatter(pieces: Iterable[Piece], source: torch.Tensor, flat: list[torch.Tensor]) -> None:
    for piece in pieces:
        end = piece.region_offset + piece.end - piece.start
        flat[piece.index][piece.start : piece.end].copy_(source[piece.region_offset : end])


def _exchange_device() -> torch.device:
    # "cpu:gloo,cuda:nccl" and gloo move CPU tensors; a plain nccl group only its GPU's.
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)

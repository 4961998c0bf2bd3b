"""``.metadata``, DCP's description of a checkpoint: built, written, and read without trusting it.

Its format is a pickle, which is why this module, alone in ftrain, imports pickle: to write what DCP reads, and to read
with an unpickler that knows DCP's own description classes and nothing else.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ftrain.durable.parts import Item, place_of
from ftrain.errors import StateInconsistent

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
}  # fmt: skip


def encode(items: Mapping[str, Item], path: str, save_id: str) -> bytes:
    """The file's content: for plain keys the same as ``dcp.save`` of the tracked objects' state dicts writes."""
    described: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    for item in items.values():
        index = MetadataIndex(item.key)
        if item.dtype is None:
            described[item.key] = BytesStorageMetadata()
        else:
            chunks = _tensor(described, item).chunks
            offsets = torch.Size(item.offsets or [0] * len(item.shape))
            index = MetadataIndex(item.key, offsets, len(chunks))
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(item.shape)))
        stored[index] = _StorageInfo(item.file, item.offset, item.length)
    metadata = Metadata(
        state_dict_metadata=described,
        planner_data={item.key: item.path for item in items.values()},
        storage_data=stored,
        storage_meta=StorageMeta(checkpoint_id=path, save_id=save_id),
    )
    if "version" in {field.name for field in dataclasses.fields(Metadata)}:  # torch 2.9 and later
        metadata.version = getattr(filesystem, "CURRENT_DCP_VERSION", None)
    return pickle.dumps(metadata)


def _tensor(described: dict[str, Any], item: Item) -> TensorStorageMetadata:
    if item.key not in described:
        properties = TensorProperties(dtype=getattr(torch, item.dtype or ""))
        whole = torch.Size(item.shape if item.whole is None else item.whole)
        described[item.key] = TensorStorageMetadata(properties, whole, [])
    found: TensorStorageMetadata = described[item.key]
    return found


def decode(content: bytes) -> dict[str, _StorageInfo]:
    """Where each item lies, by its place. Raises StateInconsistent if this is no DCP metadata, or more than that."""
    try:
        metadata = _Restricted(io.BytesIO(content)).load()
        stored = metadata.storage_data.items()
        return {place_of(at.fqn, at.offset or ()): info for at, info in stored if isinstance(info, _StorageInfo)}
    except Exception as error:  # a damaged pickle can raise anything
        raise StateInconsistent(f"the checkpoint's .metadata is not as ftrain writes it: {error}") from error


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        raise pickle.UnpicklingError(f"{module}.{name} does not belong there")

"""Part records and DCP's metadata: how parts become one checkpoint, and what is read back of it."""

from __future__ import annotations

import os
import pickle
from typing import Any

import msgspec
import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata

from ftrain.durable import metadata
from ftrain.durable.parts import Alias, Item, Part, merged
from ftrain.errors import StateMismatch
from ftrain_snapshot.storage import Claim


def item(key: str, position: int = 0, dtype: str | None = None) -> Item:
    return Item(key, tuple(key.split(".")), f"__{position}_0.distcp", 7, 9, 11, dtype, (2, 3) if dtype else ())


def part(position: int, items: list[Item], aliases: list[Alias] | None = None) -> Part:
    return Part("a", position, 1.0, 2.0, 0, "", tuple(items), tuple(aliases or ()), f"__{position}_0.distcp", 100)


def test_the_lowest_rank_that_has_a_key_gives_its_value() -> None:
    found = merged([part(2, [item("own.x", 2)]), part(0, [item("m.w")]), part(1, [item("own.x", 1)])])
    assert {key: each.file for key, each in found.items()} == {"m.w": "__0_0.distcp", "own.x": "__1_0.distcp"}


def test_a_tied_tensor_is_one_item_with_two_keys() -> None:
    found = merged([part(0, [item("m.w", 0, "float32")], [Alias("m.tied", ("m", "tied"), "m.w")])])
    assert found["m.tied"] == msgspec.structs.replace(found["m.w"], key="m.tied", path=("m", "tied"))


def test_an_alias_gives_way_to_an_item_and_needs_its_target() -> None:
    aliases = [Alias("m.x", ("m", "x"), "m.w"), Alias("m.y", ("m", "y"), "nowhere")]
    found = merged([part(0, [item("m.w", 0, "float32"), item("m.x")], aliases)])
    assert found["m.x"].dtype is None
    assert "m.y" not in found


def test_an_alias_may_point_into_another_part() -> None:
    found = merged([part(0, [], [Alias("m.x", ("m", "x"), "m.w")]), part(1, [item("m.w", 1, "int8")])])
    assert found["m.x"].file == "__1_0.distcp"


def test_a_part_record_survives_json_and_begins_as_a_claim() -> None:
    whole = part(3, [msgspec.structs.replace(item("m.w", 3, "int8"), path=("m", 0, "ä"))], [Alias("k", (1,), "m.w")])
    content = msgspec.json.encode(whole)
    assert msgspec.json.decode(content, type=Part) == whole
    assert msgspec.json.decode(content, type=Claim) == Claim("a", 3, 1.0, 2.0)
    claim = msgspec.json.encode(Claim("a", 3, 1.0, 2.0))
    with pytest.raises(msgspec.ValidationError, match="number"):
        msgspec.json.decode(claim, type=Part)


def test_metadata_is_dcps_and_is_read_back_without_trust() -> None:
    items = {"m.w": item("m.w", 0, "bfloat16"), "own.x": item("own.x", 1)}
    content = metadata.encode(items, "/somewhere", "me")
    loaded: Any = pickle.loads(content)  # as DCP does
    assert isinstance(loaded.state_dict_metadata["own.x"], BytesStorageMetadata)
    tensor = loaded.state_dict_metadata["m.w"]
    assert isinstance(tensor, TensorStorageMetadata)
    assert (tensor.properties.dtype, tensor.size) == (torch.bfloat16, torch.Size([2, 3]))
    assert loaded.planner_data == {"m.w": ("m", "w"), "own.x": ("own", "x")}
    assert loaded.storage_data[MetadataIndex("m.w", [0, 0])].offset == 7
    stored = metadata.decode(content)
    assert {key: (info.relative_path, info.length) for key, info in stored.items()} == {
        "m.w": ("__0_0.distcp", 9), "own.x": ("__1_0.distcp", 9)
    }  # fmt: skip


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil(os.getpid)),
        pickle.dumps(Evil(eval, "1")),
        pickle.dumps(Evil(torch.load, "x")),
        pickle.dumps(Evil(getattr, "x", "y")),
        pickle.dumps({"storage_data": {}}),
        pickle.dumps(7),
        b"",
        b"\x80\x04.",
        b"garbage",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x0bserialization\x93.",
        metadata.encode({"a": item("a")}, "", "")[:-10],
    ],
)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(StateMismatch, match="not as ftrain writes it"):
        metadata.decode(content)
